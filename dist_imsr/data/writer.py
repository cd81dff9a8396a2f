"""Writes the files of spans: sequences by bucket, raw ids, numbers of interactions by item, manifests."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dist_imsr.addresses import Location
from dist_imsr.data.dataset import SHORTEST_SPLIT, Dataset, SpanEntry, held_out
from dist_imsr.data.met_before import met_before, met_in
from dist_imsr.data.remote import RemoteFolder
from dist_imsr.data.storage import new_file
from dist_imsr.files import digest_of, whole_file

BYTES_PER_ROW = 112  # memory for each interaction of a bucket while it is cut and written
_LONGEST_LIST = 2**31 - 1  # the offsets of an Arrow list are int32
_ROW_GROUP = 2**20  # rows of Parquet files
_NOT_IN_MANIFEST = ("name", "digest", "manifest", "retired")  # what may change later, and what only the manifest gives


Files = dict[str, dict[str, Any]]
"""Entries of files in a manifest, by their paths in the data set's folder."""


@dataclass(frozen=True)
class Interactions:
    """Interactions of one bucket in the order (user, time, place in the log).

    Args:
        users: ``[n]`` integers, the users' numbers inside the bucket.
        items: ``[n]`` int32 or int64, item ids.
        times: ``[n]`` int64, unix seconds.
        entered: ``[n]`` int64, the unix second from which on the user counts: earlier rows enter the span of that
            second. None if no user had to wait.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    entered: np.ndarray | None = None

    @classmethod
    def of(cls, rows: pa.Table) -> "Interactions":
        """Those of a table with the columns ``user``, ``item``, ``time`` and, maybe, ``entered``."""
        user, item, time, *entered = (rows[name].to_numpy() for name in rows.column_names)
        return cls(user, item, time, *entered)


class SpanFile(NamedTuple):
    """A file of a new span that was written.

    Args:
        span: the number of the span among the new ones.
        name: of the file, in the data set's folder.
        entry: in the span's manifest.
        counts: what it adds to the fields of `SpanEntry` of these names.
    """

    span: int
    name: str
    entry: dict[str, Any]
    counts: dict[str, int]


class SpanWriter:
    """Writes the files of new spans; threads and processes may write different files.

    Args:
        folder: the data set's folder, or its address.
        edges: ``[S + 1]`` int64, the first second of each new span, and the end of the last one. What is earlier
            belongs to the first one.
        items: ``[S + 1]``, the number of items known before the new spans and by the end of each.
        users: ``[S + 1, buckets]``, the number of users known in each bucket, likewise.
        history: the data set to which the spans are added; None for a new one.
    """

    def __init__(
        self,
        folder: Location,
        edges: np.ndarray,
        items: Sequence[int],
        users: np.ndarray,
        history: Dataset | None = None,
    ) -> None:
        self._folder, self._edges, self._items, self._users, self._history = folder, edges, items, users, history
        self.first_span = history.spans if history is not None else 0
        self.spans, self.buckets = len(edges) - 1, users.shape[1]

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

    def new_ids(self, table: str) -> list[int]:
        """The number of ids that are new in each span; the table is ``users`` or ``items``."""
        known = self._users.sum(1) if table == "users" else np.asarray(self._items)
        return np.diff(known).tolist()

    def name(self, span: int) -> str:
        """The name of a new span, by its number among the new ones."""
        return f"span={self.first_span + span}"

    def write(self, bucket: int, rows: Interactions) -> list[SpanFile]:
        """Writes all new spans of one bucket.

        Args:
            bucket: its number.
            rows: all interactions of its users.

        Raises:
            ValueError: if a span of the bucket has more interactions than an Arrow list can hold.
        """
        times = rows.times
        since = times if rows.entered is None else np.maximum(times, rows.entered)
        spans = np.searchsorted(self._edges[1:-1], since, side="right").astype(np.uint16)
        met = met_before(rows.users, rows.items, spans, self._items[-1])
        ids = rows.users.astype(np.int64) * self.buckets + bucket
        if self._history is not None:
            met |= met_in(self._history, bucket, ids, rows.items.astype(np.int64))
        order = np.argsort(spans, kind="stable")  # radix sort for 16 bits; keeps the order of users and times
        ends = np.bincount(spans, minlength=self.spans).cumsum()
        written = []
        for span, at in enumerate(np.split(order, ends[:-1])):
            if len(at) > _LONGEST_LIST:
                raise ValueError(
                    f"buckets: span {self.first_span + span} of bucket {bucket} has {len(at)} interactions; use more "
                    "buckets"
                )
            written.append(
                self._write_span(span, bucket, users=ids[at], items=rows.items[at], times=times[at], met=met[at])
            )
        return written

    def _write_span(
        self, span: int, bucket: int, *, users: np.ndarray, items: np.ndarray, times: np.ndarray, met: np.ndarray
    ) -> SpanFile:
        starts = np.flatnonzero(np.diff(users, prepend=-1))  # the first row of each user
        offsets = pa.array(np.append(starts, len(users)), pa.int32())
        lists = ((items, id_type(self._items[span + 1])), (times, pa.int64()), (met, pa.bool_()))
        columns = [
            pa.array(users[starts], pa.int64()),
            *(pa.ListArray.from_arrays(offsets, pa.array(values, kind)) for values, kind in lists),
        ]
        batch = pa.RecordBatch.from_arrays(columns, ["user", "items", "times", "met_before"])
        name = f"{self.name(span)}/bucket={bucket:03d}.arrow"
        returning = users[starts] // self.buckets < self._users[span, bucket]
        counts = counts_of(np.diff(starts, append=len(users)), returning)
        return SpanFile(span, name, write_batch(self._folder, name, batch), counts)

    def write_ids(self, table: str, span: int, schema: pa.Schema, parts: Iterable[Any]) -> SpanFile:
        """Writes the raw ids that are new in a span.

        Args:
            table: ``users`` or ``items``.
            span: the number of the span among the new ones.
            schema: of the rows: the id, and ``raw``.
            parts: record batches or tables, in the order of ids.
        """
        name = f"{table}/{self.name(span)}.parquet"
        return SpanFile(span, name, write_rows(self._folder, name, schema, parts)[name], {})

    def count_items(self, span: int) -> SpanFile:
        """Writes the numbers of interactions of a span's items, once the span's buckets are written."""
        counts = np.zeros(self._items[span + 1], np.int64)
        for bucket in range(self.buckets):
            batch = read_batch(self._folder, f"{self.name(span)}/bucket={bucket:03d}.arrow")
            items = batch.column("items").values.to_numpy()
            np.add.at(counts, items, 1)  # bincount would pass over all items for each bucket
        touched = counts.nonzero()[0]
        columns = [pa.array(touched, id_type(len(counts))), pa.array(counts[touched])]
        batch = pa.record_batch(columns, ["item", "interactions"])
        name = f"{self.name(span)}/item_counts.arrow"
        new = {"interactions_with_new_items": int(counts[self._items[span] :].sum())}
        return SpanFile(span, name, write_batch(self._folder, name, batch), new)

    def entries(self, written: Iterable[SpanFile]) -> list[SpanEntry]:
        """Writes the manifests.

        Args:
            written: all files of the new spans.

        Returns:
            The entries of the new spans in ``dataset.json``.
        """
        files: list[dict[str, dict[str, Any]]] = [{} for _ in range(self.spans)]
        counts: list[Counter[str]] = [Counter() for _ in range(self.spans)]
        for file in written:
            files[file.span][file.name] = file.entry
            counts[file.span].update(file.counts)
        entries = []
        for span in range(self.spans):
            entry = SpanEntry(
                name=str(self.first_span + span),
                first_second=int(self._edges[span]),
                end_second=int(self._edges[span + 1]),
                items=int(self._items[span + 1]),
                users=self._users[span + 1].tolist(),
                met_since=self._history.first_kept if self._history is not None else 0,
                digest="",
                manifest={},
                **counts[span],  # type: ignore[arg-type]
            )
            entries.append(write_manifest(self._folder, entry, files[span]))
        if isinstance(self._folder, Path):
            for name in ("users", "items", "waiting", "titles", *map(self.name, range(self.spans))):
                for partial in (self._folder / name).glob(".*"):  # of a task that was killed
                    partial.unlink()
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


def write_batch(folder: Location, name: str, batch: pa.RecordBatch) -> dict[str, Any]:
    """Writes an Arrow file of one batch; returns its entry in a manifest.

    Args:
        folder: of the data set.
        name: the path in it.
        batch: the rows.
    """
    with new_file(folder, name) as path:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
            file.write_batch(batch)
        return manifest_entry(path, batch.num_rows)


def read_batch(folder: Location, name: str) -> pa.RecordBatch:
    """The rows of an Arrow file of one batch; a local one is mapped.

    Args:
        folder: of the data set.
        name: the path in it.
    """
    if isinstance(folder, Path):
        return pa.ipc.open_file(pa.memory_map(str(folder / name))).get_batch(0)
    return pa.ipc.open_file(pa.py_buffer(RemoteFolder(folder).read(name))).get_batch(0)


def write_manifest(folder: Location, entry: SpanEntry, files: dict[str, dict[str, Any]]) -> SpanEntry:
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
    with new_file(folder, entry.manifest_file) as path:
        path.write_bytes(text)
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


def write_table(path: Path, parts: Iterable[Any], schema: pa.Schema | None = None) -> int:
    """Streams record batches or tables into a Parquet file, whose bytes depend on the rows alone.

    Args:
        path: the file.
        parts: at least one, unless the schema is given.
        schema: of the rows.

    Returns:
        The number of rows.
    """
    rest = iter(parts)
    first = [next(rest)] if schema is None else []
    with whole_file(path) as partial:
        return _write_parquet(partial, itertools.chain(first, rest), schema or first[0].schema)


def _write_parquet(path: Path, parts: Iterable[Any], schema: pa.Schema) -> int:
    rows = 0
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:  # unique ids
        for group in _row_groups(parts, schema):
            writer.write_table(group)
            rows += group.num_rows
    return rows


def _row_groups(parts: Iterable[Any], schema: pa.Schema) -> Iterator[pa.Table]:
    """Joins and splits rows into tables of `_ROW_GROUP` rows, each of one chunk; no rows are one empty table."""
    buffer, started = schema.empty_table(), False
    for part in parts:
        table = pa.Table.from_batches([part]) if isinstance(part, pa.RecordBatch) else part
        buffer = pa.concat_tables([buffer, table])
        while buffer.num_rows >= _ROW_GROUP:
            yield buffer.slice(0, _ROW_GROUP).combine_chunks()
            buffer, started = buffer.slice(_ROW_GROUP), True
    if buffer.num_rows or not started:
        yield buffer.combine_chunks()


def write_rows(folder: Location, name: str, schema: pa.Schema, parts: Iterable[Any]) -> Files:
    """Writes a Parquet file; returns its entry by its path in the folder.

    Args:
        folder: of the data set.
        name: the path in it.
        schema: of the rows.
        parts: record batches or tables.
    """
    with new_file(folder, name) as path:
        return {name: manifest_entry(path, _write_parquet(path, parts, schema))}


def manifest_entry(path: Path, rows: int) -> dict[str, Any]:
    """The manifest's entry of a file: bytes, sha256 and rows."""
    return {"bytes": path.stat().st_size, "sha256": digest_of(path), "rows": rows}


def id_type(count: int) -> pa.DataType:
    """The type of so many item ids: int32 if it suffices, else int64."""
    return pa.int32() if count <= 2**31 else pa.int64()
