"""The files of a prepared folder: sequences cut into spans, tables, checksums."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dist_imsr.data.dataset import held_out
from dist_imsr.files import digest_of

SEQUENCE_BITS = 32  # of a moment: the lower ones tell rows of one second apart, in the input's order
BYTES_PER_ROW = 112  # held for each interaction of a bucket while it is cut and written
_BLOCK = 1 << 16  # rows
_LONGEST_LIST = 2**31 - 1  # what the offsets of an Arrow list can tell


@dataclass(frozen=True)
class Interactions:
    """Interactions in the order (user, moment).

    Args:
        users: ``[n]`` int32 or int64, dense ids.
        items: ``[n]`` int32 or int64, dense ids.
        moments: ``[n]`` uint64, unix seconds above the lower `SEQUENCE_BITS`.
    """

    users: np.ndarray
    items: np.ndarray
    moments: np.ndarray


class SpanWriter:
    """Writes one file for each span and bucket, and counts.

    Args:
        folder: the prepared folder.
        edges: ``[T + 2]`` int64, unix seconds; span t is ``edges[t] <= time < edges[t + 1]``, the last one closed.
        users: how many there are.
        items: how many there are.
    """

    def __init__(self, folder: Path, edges: np.ndarray, users: int, items: int) -> None:
        self._folder, self._edges, self._items = folder, edges, items
        self.user_type, self.item_type = integer_type(users), integer_type(items)
        self.spans = len(edges) - 1
        self.interactions = [0] * self.spans
        self.active_users = [0] * self.spans
        self.trainable_users = [0] * self.spans
        self.files: dict[str, dict[str, Any]] = {}
        for span in range(self.spans):
            (folder / f"span={span}").mkdir()

    def write(self, bucket: int, rows: Interactions) -> None:
        """Writes all spans of one bucket.

        Args:
            bucket: its number.
            rows: everything its users did, over all spans.

        Raises:
            ValueError: if a span of the bucket holds more interactions than an Arrow list can.
        """
        times = (rows.moments >> np.uint64(SEQUENCE_BITS)).astype(np.int64)
        spans = np.searchsorted(self._edges[1:-1], times, side="right").astype(np.uint16)
        met = met_before(rows.users, rows.items, spans, self._items)
        order = np.argsort(spans, kind="stable")  # radix for 16 bits; keeps users together and times in order
        ends = np.bincount(spans, minlength=self.spans).cumsum()
        for span, at in enumerate(np.split(order, ends[:-1])):
            if len(at) > _LONGEST_LIST:
                raise ValueError(
                    f"buckets: span {span} of bucket {bucket} has {len(at)} interactions; use more buckets"
                )
            self._write_span(span, bucket, rows.users[at], rows.items[at], times[at], met[at])

    def _write_span(
        self, span: int, bucket: int, users: np.ndarray, items: np.ndarray, times: np.ndarray, met: np.ndarray
    ) -> None:
        starts = np.flatnonzero(np.diff(users, prepend=-1))  # of each user's rows
        offsets = pa.array(np.append(starts, len(users)), pa.int32())
        lists = ((items, self.item_type), (times, pa.int64()), (met, pa.bool_()))
        columns = [
            pa.array(users[starts], self.user_type),
            *(pa.ListArray.from_arrays(offsets, pa.array(values, kind)) for values, kind in lists),
        ]
        batch = pa.RecordBatch.from_arrays(columns, ["user", "items", "times", "met_before"])
        name = f"span={span}/bucket={bucket:03d}.arrow"
        with pa.OSFile(str(self._folder / name), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
            file.write_batch(batch)
        self.files[name] = described(self._folder / name, len(starts))
        lengths = np.diff(starts, append=len(users))
        self.interactions[span] += len(users)
        self.active_users[span] += len(starts)
        self.trainable_users[span] += int((lengths - held_out(lengths) >= 2).sum())


def met_before(users: np.ndarray, items: np.ndarray, spans: np.ndarray, n_items: int) -> np.ndarray:
    """Whether a user met an item in an earlier span.

    Args:
        users: ``[n]`` dense ids, in ascending order.
        items: ``[n]`` dense ids.
        spans: ``[n]`` the span of each interaction.
        n_items: more than the largest item.

    Returns:
        ``[n]`` bool.
    """
    met = np.zeros(len(users), bool)
    n_spans = int(spans.max(initial=0)) + 1
    # A block of users at a time: what is sorted stays in the processor's cache, and is little beside the rows.
    edges = np.searchsorted(users, users[np.arange(0, len(users), _BLOCK)], side="left")
    for block in (slice(*ends) for ends in itertools.pairwise([*np.unique(edges), len(users)])):
        pairs = (users[block].astype(np.int64) - int(users[block.start])) * n_items + items[block]  # of user and item
        order = np.argsort(pairs * n_spans + spans[block])
        pairs, sorted_spans = pairs[order], spans[block][order]
        new = np.diff(pairs, prepend=-1) != 0
        first = sorted_spans[new][new.cumsum() - 1]
        met[block][order] = sorted_spans > first
    return met


def in_parts(batches: Iterable[pa.RecordBatch], sizes: Iterable[int]) -> Iterator[Interactions]:
    """Cuts a stream of rows anew.

    Args:
        batches: of the columns user, item, moment; at least one.
        sizes: the rows of each part; they sum to the rows of the stream.

    Yields:
        The parts; memory holds one of them and a batch.
    """
    rest = iter(batches)
    held = pa.Table.from_batches([next(rest)])
    for size in sizes:
        while held.num_rows < size:
            held = pa.concat_tables([held, pa.Table.from_batches([next(rest)])])
        rows = Interactions(*(held[name].slice(0, size).to_numpy() for name in ("user", "item", "moment")))
        held = held.slice(size)
        yield rows


def write_table(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Streams a table into a Parquet file.

    Args:
        path: the file.
        batches: the rows, at least one batch.

    Returns:
        How many rows there are.
    """
    rest = iter(batches)
    first = next(rest)
    rows = 0
    with pq.ParquetWriter(path, first.schema, use_dictionary=False) as writer:  # ids do not repeat
        for batch in itertools.chain([first], rest):
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def described(path: Path, rows: int) -> dict[str, Any]:
    """The manifest's entry of a file.

    Args:
        path: the file.
        rows: how many it holds.

    Returns:
        Its bytes, sha256 and rows.
    """
    return {"bytes": path.stat().st_size, "sha256": digest_of(path), "rows": rows}


def integer_type(count: int) -> pa.DataType:
    """The type of dense ids.

    Args:
        count: how many there are.

    Returns:
        int32 if it can tell them apart, else int64.
    """
    return pa.int32() if count <= 2**31 else pa.int64()
