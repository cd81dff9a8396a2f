"""The steps from a raw log to the files of spans, for a new data set and for one that grows.

DuckDB does the steps that need all rows, out of core: it stages the input in the input's order (rows of one second in
the order of its fractions), counts, numbers, and sorts once by (bucket, user, moment). A moment holds the unix second
in its upper bits and the row's place in the staged table in its lower bits, so that one integer orders interactions by
time with ties in the input's order. The sorted rows stream out bucket by bucket, and numpy cuts each bucket into its
spans.
"""

import math
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dist_imsr.data.cutting import MOST_SPANS, date_of, first_edges, further_edges
from dist_imsr.data.dataset import TITLES, Dataset, SpanEntry
from dist_imsr.data.findings import warnings_of
from dist_imsr.data.late import reject_known_rows
from dist_imsr.data.numbering import (
    MOMENT,
    Counted,
    Numbering,
    ids_query,
    open_known,
    per_bucket,
    require_same_ids,
    rows_by_span,
)
from dist_imsr.data.row_filters import leave_out, order_by_fraction
from dist_imsr.data.source_query import AFTER, BEFORE, LEFT_OUT
from dist_imsr.data.sources import SourceConfig, queries
from dist_imsr.data.sql import quoted_path
from dist_imsr.data.staging import Staged, refuse_bad_rows, stage
from dist_imsr.data.workspace import Database, ProgressDisplay
from dist_imsr.data.writer import (
    BYTES_PER_ROW,
    Interactions,
    SpanWriter,
    id_type,
    manifest_entry,
    split_stream,
    write_table,
)

DATABASE_SHARE = 0.7  # of the memory limit; the rest is for Python, Arrow and numpy
_PYTHON_BYTES = 200 * 2**20  # for Python and its libraries, besides the current bucket
_SQL_TYPES = {pa.int32(): "INTEGER", pa.int64(): "BIGINT"}
_WAITING = "SELECT user, item, time FROM events ANTI JOIN users ON events.user = users.raw WHERE reason IS NULL"
_FIRST_TITLES = """
    SELECT items.id::BIGINT AS item, arg_min(title, events.rowid) AS title
    FROM events JOIN items ON events.item = items.raw
    WHERE items.new AND reason IS NULL AND trim(title) <> '' GROUP BY items.id ORDER BY item
"""

Files = dict[str, dict[str, Any]]


class Preparation:
    """One log on its way into a data set; its state are the tables events, counts, users and items.

    Args:
        config: the input and the options.
        buckets: the number of buckets.
        waits: as in `Numbering`.
        known: the data set to which the log is added; None for a new one.
        database: an empty one.
        display: shows the progress.
        folder: of the data set.
        memory: bytes of the process.
        threads: that write buckets, as far as the memory allows.
    """

    def __init__(
        self,
        config: SourceConfig,
        *,
        buckets: int,
        waits: bool,
        known: Dataset | None,
        database: Database,
        display: ProgressDisplay,
        folder: Path,
        memory: int,
        threads: int,
    ) -> None:
        self.config, self.buckets, self.known, self.folder = config, buckets, known, folder
        self.memory, self.threads = memory, threads
        self.database, self.display, self.name = database, display, config.input_name
        self.warnings: list[str] = []
        self.numbering = Numbering(database, buckets, config.min_interactions, waits, known)

    def run(self) -> tuple[list[SpanEntry], Files, dict[str, Any]]:
        """Writes the files of the new spans.

        Returns:
            The entries of the new spans; the entries of other files by path; the record of this preparation.

        Raises:
            ValueError: naming key, file or row, if the log cannot become spans.
        """
        staged = self._stage()
        left_out = self._left_out()
        with self.display.phase("users") as progress:
            counted = self.numbering.number_users(progress)
        edges = self._edges(counted, staged, left_out)
        with self.display.phase("items") as progress:
            self.numbering.number_items(progress)
        items, users = self.numbering.known_by_span(edges)
        self._refuse_lonely_spans(edges)
        writer = SpanWriter(self.folder, edges, items, users, self.known)
        self._write_spans(writer)
        entries, files = self._write_tables(writer, staged)
        self.warnings = warnings_of(entries, self.known, self.database)
        if self.config.span_every is not None:
            self._warn_of_part(edges, counted.last)
        first, end = self.config.period
        record = {
            "input": [*staged.digests],
            "digests": [*staged.digests.values()],
            "from": first,
            "until": end,
            "spans": [writer.first_span, writer.first_span + writer.spans - 1],
            "read_as": dict(staged.read_as),
            "rows_read": staged.rows,
            "rejected": staged.ordered_rejected,
            "left_out": left_out,
        }
        return entries, files, record

    def _stage(self) -> Staged:
        config, database, display = self.config, self.database, self.display
        files = queries(config, database, display, appended_files(self.known, config) if self.known else None)
        staged = stage(files, self.name, config.max_bad_fraction, database, display)
        order_by_fraction(database, display)
        if self.known is not None:
            open_known(database, self.known)
            require_same_ids(database, self.known, self.name)
            staged.rejected += reject_known_rows(self.known, database)
            refuse_bad_rows(staged, self.name, config.max_bad_fraction)
            self._insert_waiting(self.known)
        leave_out(config, config.min_interactions, database, display)
        return staged

    def _insert_waiting(self, known: Dataset) -> None:
        """Adds the interactions of users who wait, after those of the log; they are earlier."""
        for name in known.waiting_files:
            self.database.run(
                "INSERT INTO events (user, item, time, nanos, breaks) SELECT user, item, time, 0, 0 "
                f"FROM read_parquet({quoted_path(known.local(name))}, hive_partitioning = false)"
            )

    def _left_out(self) -> dict[str, int]:
        return dict(
            self.database.run(
                f"SELECT substr(reason, {len(LEFT_OUT) + 1}), count(*) FROM events "
                f"WHERE starts_with(reason, '{LEFT_OUT}') GROUP BY reason ORDER BY reason"
            )
        )

    def _edges(self, counted: Counted, staged: Staged, left_out: dict[str, int]) -> np.ndarray:
        """The first second of each new span and the end of the last one, ``[S + 1]`` int64."""
        config, least = self.config, self.config.min_interactions
        others = "".join(f"; left out: {count} {reason}" for reason, count in left_out.items())
        if self.known is not None:
            if not counted.users:
                raise ValueError(f"input: {self.name} has no row to append{others}")
            earlier = [entry.first_second for entry in self.known.entries] + [self.known.entries[-1].end_second]
            if counted.last < earlier[-1]:
                raise ValueError(
                    f"late: all rows of {self.name} are from before {date_of(earlier[-1])}: alone, they would close "
                    "the next span; append them together with the next log"
                )
            edges = further_edges(config, config.time_zone, earlier, config.spans, counted.last)
        else:
            if not counted.kept:
                raise ValueError(
                    f"min_interactions: no user of {self.name} has {least}; the busiest user has {counted.busiest} "
                    f"interactions{others}"
                )
            by_share = config.span_every is None and config.span_edges is None
            whole = (counted.kept_first, counted.kept_last) if by_share else (counted.first, counted.last)
            assert staged.last is not None
            first, last = staged.last.period or whole
            try:
                edges = first_edges(config, config.time_zone, config.alpha, config.spans, first, last)
            except ValueError as error:
                raise ValueError(f"{error} ({self.name})") from None
        spans = len(edges) - 1 + (self.known.spans if self.known is not None else 0)
        if spans > MOST_SPANS:
            raise ValueError(f"spans: {self.name} would make {spans} spans; at most {MOST_SPANS} are possible")
        return edges

    def _refuse_lonely_spans(self, edges: np.ndarray) -> None:
        """Refuses an append whose last spans hold next to nothing: a wrong clock would close them for later logs."""
        if self.known is None or len(edges) < 3:
            return
        rows = np.array(rows_by_span(self.database, edges.tolist()))
        mean = rows[rows > 0].mean()
        full = np.flatnonzero(rows >= self.config.max_bad_fraction * mean)
        if full[-1] == len(rows) - 1:
            return
        end = int(edges[full[-1] + 1])
        raise ValueError(
            f"input: {self.name}: {rows[full[-1] + 1 :].sum():,} of {rows.sum():,} rows are at or after "
            f"{date_of(end)}, and would close spans whose other rows are still to come: pass --until that time, or "
            "--max_bad_fraction 0 if they are all there is"
        )

    def _warn_of_part(self, edges: np.ndarray, last: int) -> None:
        begin, end = int(edges[-2]), int(edges[-1])
        if end - 1 - last > (end - begin) / 10:
            self.warnings.append(
                f"the last row is at {date_of(last)}, and its span ends at {date_of(end)}: rows of the rest of it "
                "will be late"
            )

    def _write_spans(self, writer: SpanWriter) -> None:
        sizes = per_bucket(self.database, self.buckets)
        needed = int(sizes.max()) * BYTES_PER_ROW
        if needed > self.memory / 2:
            if self.known is not None:
                raise ValueError(
                    f"memory_limit: one of the {self.buckets} buckets of {self.name} needs {needed >> 20} MiB, and "
                    "half of the limit must hold it; raise the limit"
                )
            enough = math.ceil(self.buckets * needed / (self.memory / 2))
            raise ValueError(
                f"buckets: {self.buckets} are too few for memory_limit {self.memory >> 20}MiB, which holds one at a "
                f"time; use {enough} or more"
            )
        user, item = (_SQL_TYPES[id_type(count)] for count in (writer.most_locals, writer.most_items))
        entered = ", users.entered" if self.numbering.waits else ""
        query = f"""
            SELECT users.local::{user} AS user, items.id::{item} AS item, {MOMENT} AS moment{entered}
            FROM events JOIN users ON events.user = users.raw JOIN items ON events.item = items.raw
            WHERE reason IS NULL ORDER BY users.bucket::USMALLINT, user, moment
        """
        workers = max(1, min(self.threads, int(self.memory / 4) // max(needed, 1)))
        reserved = (workers + 1) * needed + _PYTHON_BYTES
        limit = min(self.memory * DATABASE_SHARE, max(self.memory - reserved, self.memory / 4))
        self.database.set_memory_limit(int(limit))
        with self.display.phase("sort") as progress:
            schema, batches = self.database.stream(query, progress)
        parts = split_stream(batches, schema, sizes.tolist())
        with self.display.phase("write") as progress, ThreadPoolExecutor(workers) as pool:
            pending = deque[Future[None]]()
            for bucket, rows in enumerate(parts):
                columns = {name: rows[name].to_numpy() for name in schema.names}
                users, items, moments = (columns[name] for name in ("user", "item", "moment"))
                own = Interactions(users, items, moments, columns.get("entered"))
                pending.append(pool.submit(writer.write, bucket, own))
                if len(pending) > workers:
                    pending.popleft().result()
                progress((bucket + 1) / len(sizes))
            for written in pending:
                written.result()

    def _write_tables(self, writer: SpanWriter, staged: Staged) -> tuple[list[SpanEntry], Files]:
        files: Files = {}
        with self.display.phase("tables"):
            for table in ("users", "items"):
                kind = _SQL_TYPES[id_type(writer.most_items)]
                writer.write_ids(
                    table, *self.database.stream(ids_query(table, self.buckets, writer.first_second, kind))
                )
            assert staged.last is not None
            for table, truth in staged.last.truth.items():
                one, number = table[:-1], "id" if table == "items" else f"local * {self.buckets} + bucket"
                known = f"SELECT ({number})::BIGINT AS {one}, known.* EXCLUDE (raw) FROM {truth} AS known"
                query = f"{known} JOIN {table} ON known.raw = {table}.raw ORDER BY ALL"
                files |= self._write(f"truth_{table}.parquet", query)
            if self.config.min_interactions > 1:
                last = writer.name(writer.spans - 1)
                files |= self._write(f"waiting/{last}.parquet", f"{_WAITING} ORDER BY time, events.rowid")
            earlier = len(self.known.manifest["preparations"]) if self.known is not None else 0
            if self.config.columns.title is not None:
                files |= self._write(f"{TITLES}/{earlier:04d}.parquet", _FIRST_TITLES)
            files |= write_rows(self.folder, f"rejected/{earlier:04d}.parquet", staged.table.schema, [staged.table])
            entries = writer.entries()
        return entries, files

    def _write(self, name: str, query: str) -> Files:
        schema, batches = self.database.stream(query)
        return write_rows(self.folder, name, schema, batches)


def appended_files(known: Dataset, config: SourceConfig) -> dict[str, str]:
    """The files of a data set that were read whole, or in the same period, by checksum: where they are."""
    period = [*config.period]
    return {
        digest: f"span {first}" if first == last else f"spans {first} to {last}"
        for record in known.manifest["preparations"]
        if [record["from"], record["until"]] == period or record["left_out"].keys().isdisjoint({BEFORE, AFTER})
        for digest in record["digests"]
        for first, last in [record["spans"]]
    }


def write_rows(folder: Path, name: str, schema: pa.Schema, parts: Iterable[Any]) -> Files:
    """Writes a Parquet file; returns its entry by its path in the folder.

    Args:
        folder: of the data set.
        name: the path in it.
        schema: of the rows.
        parts: record batches or tables.
    """
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    return {name: manifest_entry(path, write_table(path, parts, schema))}
