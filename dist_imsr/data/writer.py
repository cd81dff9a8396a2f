"""Writes the files of a prepared folder: sequences cut into spans, tables, checksums."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dist_imsr.data.dataset import SHORTEST_SPLIT, held_out
from dist_imsr.files import digest_of

SEQUENCE_BITS = 32  # the lower bits of a moment: the row's place in the input, which orders rows of the same second
BYTES_PER_ROW = 112  # memory for each interaction of a bucket while it is cut and written
_BLOCK = 1 << 16  # rows
_LONGEST_LIST = 2**31 - 1  # the offsets of an Arrow list are int32


@dataclass(frozen=True)
class Interactions:
    """Interactions in the order (user, moment).

    Args:
        users: ``[n]`` int32 or int64, dense ids.
        items: ``[n]`` int32 or int64, dense ids.
        moments: ``[n]`` uint64: unix seconds in the bits above the lower `SEQUENCE_BITS`.
    """

    users: np.ndarray
    items: np.ndarray
    moments: np.ndarray


def span_edges(period: tuple[int, int], alpha: float, spans: int) -> np.ndarray:
    """The first second of each span, and the end of the last one; fractions of a second are rounded up.

    Args:
        period: the first and the last second.
        alpha: the part of the period that is the pre-training span.
        spans: T, the number of equal spans in the rest of the period.

    Returns:
        ``[T + 2]`` int64; span t is ``edges[t] <= time < edges[t + 1]``, the last one closed.

    Raises:
        ValueError: if the period is too short.
    """
    first, last = period
    share = Fraction(str(alpha))
    parts = [share + (1 - share) * Fraction(span, spans) for span in range(spans + 1)]
    edges = [first, *(first + math.ceil(part * (last - first)) for part in parts)]
    if len(set(edges)) < len(edges):
        raise ValueError(f"spans: the interactions lie within {last - first} seconds, too little for {spans} spans")
    return np.array(edges, np.int64)


class SpanWriter:
    """Writes one file for each span and bucket, and counts interactions and users.

    Args:
        folder: the prepared folder.
        edges: ``[T + 2]`` int64, of `span_edges`.
        users: the number of users.
        items: the number of items.
    """

    def __init__(self, folder: Path, edges: np.ndarray, users: int, items: int) -> None:
        self._folder, self._edges, self._items = folder, edges, items
        self.user_type, self.item_type = id_type(users), id_type(items)
        self.spans, self.first_time = len(edges) - 1, int(edges[0])
        self.interactions = [0] * self.spans
        self.active_users = [0] * self.spans
        self.trainable_users = [0] * self.spans
        self.tested_users = [0] * self.spans
        self.files: dict[str, dict[str, Any]] = {}
        for span in range(self.spans):
            (folder / f"span={span}").mkdir()

    def write(self, bucket: int, rows: Interactions) -> None:
        """Writes all spans of one bucket.

        Args:
            bucket: its number.
            rows: all interactions of its users.

        Raises:
            ValueError: if a span of the bucket has more interactions than an Arrow list can hold.
        """
        times = (rows.moments >> np.uint64(SEQUENCE_BITS)).astype(np.int64)
        spans = np.searchsorted(self._edges[1:-1], times, side="right").astype(np.uint16)
        met = met_before(rows.users, rows.items, spans, self._items)
        order = np.argsort(spans, kind="stable")  # radix sort for 16 bits; keeps the order of users and times
        ends = np.bincount(spans, minlength=self.spans).cumsum()
        first, last = (rows.users[0], rows.users[-1]) if len(rows.users) else (0, 0)
        known = np.zeros(last - first + 1, bool)  # users of earlier spans
        for span, at in enumerate(np.split(order, ends[:-1])):
            if len(at) > _LONGEST_LIST:
                raise ValueError(
                    f"buckets: span {span} of bucket {bucket} has {len(at)} interactions; use more buckets"
                )
            active, lengths = self._write_span(
                span, bucket, users=rows.users[at], items=rows.items[at], times=times[at], met=met[at]
            )
            place = active - first
            self.tested_users[span] += int((known[place] & (lengths >= SHORTEST_SPLIT)).sum())
            known[place] = True

    def _write_span(
        self, span: int, bucket: int, *, users: np.ndarray, items: np.ndarray, times: np.ndarray, met: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Writes one file; returns its users and their numbers of interactions."""
        starts = np.flatnonzero(np.diff(users, prepend=-1))  # the first row of each user
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
        self.files[name] = manifest_entry(self._folder / name, len(starts))
        lengths = np.diff(starts, append=len(users))
        self.interactions[span] += len(users)
        self.active_users[span] += len(starts)
        self.trainable_users[span] += int((lengths - held_out(lengths) >= 2).sum())
        return users[starts], lengths


def met_before(users: np.ndarray, items: np.ndarray, spans: np.ndarray, n_items: int) -> np.ndarray:
    """Whether the user of each interaction met its item in an earlier span.

    Args:
        users: ``[n]`` dense ids, in ascending order.
        items: ``[n]`` dense ids, below ``n_items``.
        spans: ``[n]`` the span of each interaction.
        n_items: the number of items.

    Returns:
        ``[n]`` bool.
    """
    met = np.zeros(len(users), bool)
    n_spans = int(spans.max(initial=0)) + 1
    # A block of users at a time fits into the processor's cache, and takes little memory compared to all rows.
    edges = np.searchsorted(users, users[np.arange(0, len(users), _BLOCK)], side="left")
    for block in (slice(*ends) for ends in itertools.pairwise([*np.unique(edges), len(users)])):
        pairs = (users[block].astype(np.int64) - int(users[block.start])) * n_items + items[block]  # of user and item
        order = np.argsort(pairs * n_spans + spans[block])
        pairs, sorted_spans = pairs[order], spans[block][order]
        new = np.diff(pairs, prepend=-1) != 0
        first = sorted_spans[new][new.cumsum() - 1]
        met[block][order] = sorted_spans > first
    return met


def split_stream(batches: Iterable[pa.RecordBatch], sizes: Iterable[int]) -> Iterator[Interactions]:
    """Splits a stream of rows into parts of given sizes.

    Args:
        batches: of the columns user, item, moment; at least one.
        sizes: the number of rows of each part; they sum to the rows of the stream.

    Yields:
        The parts; memory holds one part and one batch.
    """
    rest = iter(batches)
    buffer = pa.Table.from_batches([next(rest)])
    for size in sizes:
        while buffer.num_rows < size:
            buffer = pa.concat_tables([buffer, pa.Table.from_batches([next(rest)])])
        users, items, moments = (buffer[name].slice(0, size).to_numpy() for name in ("user", "item", "moment"))
        buffer = buffer.slice(size)
        yield Interactions(users=users, items=items, moments=moments)


def write_table(path: Path, batches: Iterable[pa.RecordBatch]) -> int:
    """Streams record batches, at least one, into a Parquet file; returns the number of rows."""
    rest = iter(batches)
    first = next(rest)
    rows = 0
    with pq.ParquetWriter(path, first.schema, use_dictionary=False) as writer:  # ids do not repeat
        for batch in itertools.chain([first], rest):
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def manifest_entry(path: Path, rows: int) -> dict[str, Any]:
    """The manifest's entry of a file: bytes, sha256 and rows."""
    return {"bytes": path.stat().st_size, "sha256": digest_of(path), "rows": rows}


def id_type(count: int) -> pa.DataType:
    """The type of so many dense ids: int32 if it suffices, else int64."""
    return pa.int32() if count <= 2**31 else pa.int64()
