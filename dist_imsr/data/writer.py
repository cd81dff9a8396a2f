"""Writes the files of spans: sequences by bucket, raw ids, numbers of interactions by item, manifests."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dist_imsr.addresses import Location
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.held_out import SHORTEST_SPLIT, held_out
from dist_imsr.data.manifest import SpanEntry, write_span_manifest
from dist_imsr.data.met_before import met_before, met_in
from dist_imsr.data.table_files import read_batch, write_batch, write_rows

BYTES_PER_ROW = 112  # memory for each interaction of a bucket while it is cut and written
_LONGEST_LIST = 2**31 - 1  # the offsets of an Arrow list are int32


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
            entries.append(write_span_manifest(self._folder, entry, files[span]))
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


def id_type(count: int) -> pa.DataType:
    """The type of so many item ids: int32 if it suffices, else int64."""
    return pa.int32() if count <= 2**31 else pa.int64()
