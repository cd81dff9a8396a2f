"""Writes the files of spans: sequences by bucket, raw ids, numbers of interactions by item, manifests."""

import hashlib
import itertools
import json
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dist_imsr.data.dataset import SHORTEST_SPLIT, Dataset, SpanEntry, held_out
from dist_imsr.data.met_before import met_before, met_in
from dist_imsr.files import digest_of

SEQUENCE_BITS = 32  # the lower bits of a moment: the row's place in the input, which orders rows of the same second
BYTES_PER_ROW = 112  # memory for each interaction of a bucket while it is cut and written
_LONGEST_LIST = 2**31 - 1  # the offsets of an Arrow list are int32
_NOT_IN_MANIFEST = ("name", "digest", "manifest", "retired")  # what may change later, and what only the manifest gives


@dataclass(frozen=True)
class Interactions:
    """Interactions of one bucket in the order (user, moment).

    Args:
        users: ``[n]`` integers, the users' numbers inside the bucket.
        items: ``[n]`` int32 or int64, item ids.
        moments: ``[n]`` uint64: unix seconds in the bits above the lower `SEQUENCE_BITS`.
        entered: ``[n]`` int64, the unix second from which on the user counts: earlier rows enter the span of that
            second. None if no user had to wait.
    """

    users: np.ndarray
    items: np.ndarray
    moments: np.ndarray
    entered: np.ndarray | None = None


class SpanWriter:
    """Writes the files of new spans, and counts what is in them.

    Args:
        folder: the data set's folder.
        edges: ``[S + 1]`` int64, the first second of each new span, and the end of the last one. What is earlier
            belongs to the first one.
        items: ``[S + 1]``, the number of items known before the new spans and by the end of each.
        users: ``[S + 1, buckets]``, the number of users known in each bucket, likewise.
        history: the data set to which the spans are added; None for a new one.
    """

    def __init__(
        self, folder: Path, edges: np.ndarray, items: Sequence[int], users: np.ndarray, history: Dataset | None = None
    ) -> None:
        self._folder, self._edges, self._items, self._users, self._history = folder, edges, items, users, history
        self.first_span = history.spans if history is not None else 0
        self.spans, self.buckets = len(edges) - 1, users.shape[1]
        self.counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(self.spans, np.int64))
        self.files: list[dict[str, dict[str, Any]]] = [{} for _ in range(self.spans)]
        self._lock = threading.Lock()  # of the counts
        for name in ("users", "items"):
            (folder / name).mkdir(exist_ok=True)
        for span in range(self.spans):
            (folder / f"span={self.first_span + span}").mkdir()

    @property
    def first_second(self) -> int:
        """The first second of the new spans."""
        return int(self._edges[0])

    @property
    def most_items(self) -> int:
        """The number of items that are known at the end."""
        return self._items[-1]

    @property
    def most_locals(self) -> int:
        """The number of users of the largest bucket."""
        return int(self._users[-1].max())

    def name(self, span: int) -> str:
        """The name of a new span, by its number among the new ones."""
        return f"span={self.first_span + span}"

    def write(self, bucket: int, rows: Interactions) -> None:
        """Writes all new spans of one bucket; threads may write different buckets.

        Args:
            bucket: its number.
            rows: all interactions of its users.

        Raises:
            ValueError: if a span of the bucket has more interactions than an Arrow list can hold.
        """
        times = (rows.moments >> np.uint64(SEQUENCE_BITS)).astype(np.int64)
        since = times if rows.entered is None else np.maximum(times, rows.entered)
        spans = np.searchsorted(self._edges[1:-1], since, side="right").astype(np.uint16)
        met = met_before(rows.users, rows.items, spans, self._items[-1])
        ids = rows.users.astype(np.int64) * self.buckets + bucket
        if self._history is not None:
            met |= met_in(self._history, bucket, ids, rows.items.astype(np.int64))
        order = np.argsort(spans, kind="stable")  # radix sort for 16 bits; keeps the order of users and times
        ends = np.bincount(spans, minlength=self.spans).cumsum()
        for span, at in enumerate(np.split(order, ends[:-1])):
            if len(at) > _LONGEST_LIST:
                raise ValueError(
                    f"buckets: span {self.first_span + span} of bucket {bucket} has {len(at)} interactions; use more "
                    "buckets"
                )
            self._write_span(span, bucket, users=ids[at], items=rows.items[at], times=times[at], met=met[at])

    def _write_span(
        self, span: int, bucket: int, *, users: np.ndarray, items: np.ndarray, times: np.ndarray, met: np.ndarray
    ) -> None:
        starts = np.flatnonzero(np.diff(users, prepend=-1))  # the first row of each user
        offsets = pa.array(np.append(starts, len(users)), pa.int32())
        lists = ((items, id_type(self._items[span + 1])), (times, pa.int64()), (met, pa.bool_()))
        columns = [
            pa.array(users[starts], pa.int64()),
            *(pa.ListArray.from_arrays(offsets, pa.array(values, kind)) for values, kind in lists),
        ]
        batch = pa.RecordBatch.from_arrays(columns, ["user", "items", "times", "met_before"])
        self._write_batch(span, f"{self.name(span)}/bucket={bucket:03d}.arrow", batch)
        returning = users[starts] // self.buckets < self._users[span, bucket]
        counts = counts_of(np.diff(starts, append=len(users)), returning)
        with self._lock:
            for name, count in counts.items():
                self.counts[name][span] += count

    def _write_batch(self, span: int, name: str, batch: pa.RecordBatch) -> None:
        self.files[span][name] = write_batch(self._folder, name, batch)

    def write_ids(self, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Writes the raw ids that are new in each span.

        Args:
            table: ``users`` or ``items``.
            schema: of the batches: the id, and ``raw``.
            batches: in the order of spans, and of ids inside a span.
        """
        known = self._users.sum(1) if table == "users" else np.asarray(self._items)
        parts = split_stream(batches, schema, np.diff(known).tolist())
        for span, part in enumerate(parts):
            name = f"{table}/{self.name(span)}.parquet"
            # One chunk, so that the bytes depend on the rows alone; ids do not repeat.
            pq.write_table(part.combine_chunks(), self._folder / name, use_dictionary=False)
            self.files[span][name] = manifest_entry(self._folder / name, part.num_rows)

    def entries(self) -> list[SpanEntry]:
        """Counts the interactions of items, and writes the manifests; call it last.

        Returns:
            The entries of the new spans in ``dataset.json``.
        """
        entries = []
        for span in range(self.spans):
            counts = np.zeros(self._items[span + 1], np.int64)
            for bucket in range(self.buckets):
                path = self._folder / self.name(span) / f"bucket={bucket:03d}.arrow"
                items = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0).column("items").values.to_numpy()
                np.add.at(counts, items, 1)  # bincount would pass over all items for each bucket
            self.counts["interactions_with_new_items"][span] = counts[self._items[span] :].sum()
            touched = counts.nonzero()[0]
            columns = [pa.array(touched, id_type(len(counts))), pa.array(counts[touched])]
            batch = pa.record_batch(columns, ["item", "interactions"])
            self._write_batch(span, f"{self.name(span)}/item_counts.arrow", batch)
            entry = SpanEntry(
                name=str(self.first_span + span),
                first_second=int(self._edges[span]),
                end_second=int(self._edges[span + 1]),
                items=int(self._items[span + 1]),
                users=self._users[span + 1].tolist(),
                met_since=self._history.first_kept if self._history is not None else 0,
                digest="",
                manifest={},
                **{name: int(count[span]) for name, count in self.counts.items()},  # type: ignore[arg-type]
            )
            entries.append(write_manifest(self._folder, entry, self.files[span]))
        return entries


def counts_of(lengths: np.ndarray, returning: np.ndarray) -> dict[str, int]:
    """Counts the interactions of users in a span.

    Args:
        lengths: ``[n]``, the number of each user's interactions in the span; at least 1.
        returning: ``[n]`` bool, whether the user is known from an earlier span.

    Returns:
        Values of fields of `SpanEntry` by name: all that depend on users.
    """
    split = lengths >= SHORTEST_SPLIT
    counts = {
        "interactions": lengths.sum(),
        "active_users": len(lengths),
        "trainable_users": (lengths - held_out(lengths) >= 2).sum(),
        "split_users": split.sum(),
        "tested_users": (split & returning).sum(),
        "interactions_of_returning_users": lengths[returning].sum(),
    }
    return {name: int(count) for name, count in counts.items()}


def write_batch(folder: Path, name: str, batch: pa.RecordBatch) -> dict[str, Any]:
    """Writes an Arrow file of one batch; returns its entry in a manifest.

    Args:
        folder: of the data set.
        name: the path in it.
        batch: the rows.
    """
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
        file.write_batch(batch)
    return manifest_entry(folder / name, batch.num_rows)


def write_manifest(folder: Path, entry: SpanEntry, files: dict[str, dict[str, Any]]) -> SpanEntry:
    """Writes the manifest of a span.

    Args:
        folder: of the data set.
        entry: of the span; one that has a digest keeps it.
        files: of the span.

    Returns:
        The entry with the manifest's checksum.
    """
    facts = {name: value for name, value in asdict(entry).items() if name not in _NOT_IN_MANIFEST}
    text = (json.dumps(facts | {"files": dict(sorted(files.items()))}, indent=1) + "\n").encode()
    (folder / entry.manifest_file).write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    values = asdict(entry) | {"digest": entry.digest or digest, "manifest": {"bytes": len(text), "sha256": digest}}
    return SpanEntry(**values)


def split_stream(batches: Iterable[pa.RecordBatch], schema: pa.Schema, sizes: Iterable[int]) -> Iterator[pa.Table]:
    """Splits a stream of rows into parts of given sizes.

    Args:
        batches: the stream.
        schema: of the batches.
        sizes: the number of rows of each part; they sum to the rows of the stream.

    Yields:
        The parts; memory holds one part and one batch.
    """
    rest = iter(batches)
    buffer = schema.empty_table()
    for size in sizes:
        while buffer.num_rows < size:
            buffer = pa.concat_tables([buffer, pa.Table.from_batches([next(rest)])])
        yield buffer.slice(0, size)
        buffer = buffer.slice(size)


def write_table(path: Path, batches: Iterable[Any], schema: pa.Schema | None = None) -> int:
    """Streams record batches or tables into a Parquet file; returns the number of rows.

    Args:
        path: the file.
        batches: at least one, unless the schema is given.
        schema: of the batches.
    """
    rest, rows = iter(batches), 0
    first = [next(rest)] if schema is None else []
    with pq.ParquetWriter(path, schema or first[0].schema, use_dictionary=False) as writer:  # ids do not repeat
        for batch in itertools.chain(first, rest):
            writer.write(batch)
            rows += batch.num_rows
    return rows


def manifest_entry(path: Path, rows: int) -> dict[str, Any]:
    """The manifest's entry of a file: bytes, sha256 and rows."""
    return {"bytes": path.stat().st_size, "sha256": digest_of(path), "rows": rows}


def id_type(count: int) -> pa.DataType:
    """The type of so many item ids: int32 if it suffices, else int64."""
    return pa.int32() if count <= 2**31 else pa.int64()
