"""The steps from a raw log to the files of spans, for a new data set and for one that grows.

An engine does the steps that need all rows: it stages the input in the input's order, counts, numbers, and sorts once
by (bucket, user, time, place in the log); numpy cuts each bucket into its spans.
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa

from dist_imsr.addresses import Location
from dist_imsr.data.cutting import MOST_SPANS, date_of, first_edges, further_edges
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.engine import Engine
from dist_imsr.data.findings import warnings_of
from dist_imsr.data.late import reject_known_rows
from dist_imsr.data.manifest import TITLES, Files, SpanEntry
from dist_imsr.data.numbering import Counted, Numbering, ids_query, per_bucket, require_same_ids, rows_by_span
from dist_imsr.data.row_filters import leave_out
from dist_imsr.data.source_query import AFTER, BEFORE, LEFT_OUT
from dist_imsr.data.sources import SourceConfig
from dist_imsr.data.staging import Staged, refuse_bad_rows
from dist_imsr.data.table_files import write_rows
from dist_imsr.data.workspace import ProgressDisplay
from dist_imsr.data.writer import BYTES_PER_ROW, SpanFile, SpanWriter, id_type

_SQL_TYPES = {pa.int32(): "INTEGER", pa.int64(): "BIGINT"}
_WAITING = """
    SELECT user, item, time, nanos, rowid FROM events ANTI JOIN users ON events.user = users.raw WHERE reason IS NULL
"""
_FIRST_TITLES = """
    SELECT items.id::BIGINT AS item, min_by(title, events.rowid) AS title
    FROM events JOIN items ON events.item = items.raw
    WHERE items.new AND reason IS NULL AND trim(title) <> '' GROUP BY items.id
"""


class Preparation:
    """One log on its way into a data set; its state are the tables events, counts, users and items.

    Args:
        config: the input and the options.
        buckets: the number of buckets.
        waits: as in `Numbering`.
        known: the data set to which the log is added; None for a new one.
        engine: an empty one.
        display: shows the progress.
        folder: of the data set, or its address.
        memory: bytes of a process that writes a bucket.
    """

    def __init__(
        self,
        config: SourceConfig,
        *,
        buckets: int,
        waits: bool,
        known: Dataset | None,
        engine: Engine,
        display: ProgressDisplay,
        folder: Location,
        memory: int,
    ) -> None:
        self.config, self.buckets, self.known, self.folder = config, buckets, known, folder
        self.memory, self.engine, self.display, self.name = memory, engine, display, config.input_name
        self.warnings: list[str] = []
        self.numbering = Numbering(engine, buckets, config.min_interactions, waits, known)

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
        written = self._write_spans(writer)
        entries, files = self._write_tables(writer, written, staged)
        self.warnings = warnings_of(entries, self.known, self.engine)
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
        config, engine = self.config, self.engine
        staged = engine.stage(config, appended_files(self.known, config) if self.known else None)
        if self.known is not None:
            engine.open_known(self.known)
            require_same_ids(engine, self.known, self.name)
            staged.rejected += reject_known_rows(self.known, engine)
            refuse_bad_rows(staged, self.name, config.max_bad_fraction)
            engine.add_waiting(self.known)
        leave_out(config, config.min_interactions, engine, self.display)
        return staged

    def _left_out(self) -> dict[str, int]:
        return dict(
            self.engine.run(
                f"SELECT substr(reason, {len(LEFT_OUT) + 1}), count(*) FROM events "
                f"WHERE reason LIKE '{LEFT_OUT}%' GROUP BY reason ORDER BY reason"
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
            first, last = staged.period or whole
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
        rows = np.array(rows_by_span(self.engine, edges.tolist()))
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

    def _write_spans(self, writer: SpanWriter) -> list[SpanFile]:
        sizes = per_bucket(self.engine, self.buckets)
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
            SELECT users.bucket, users.local::{user} AS user, items.id::{item} AS item, time{entered}, nanos,
                events.rowid
            FROM events JOIN users ON events.user = users.raw JOIN items ON events.item = items.raw
            WHERE reason IS NULL
        """
        with self.display.phase("write") as progress:
            return list(self.engine.write_buckets(writer, query, sizes, progress))

    def _write_tables(
        self, writer: SpanWriter, written: list[SpanFile], staged: Staged
    ) -> tuple[list[SpanEntry], Files]:
        files, engine, folder = Files(), self.engine, self.folder
        with self.display.phase("tables"):
            for table in ("users", "items"):
                kind = _SQL_TYPES[id_type(writer.most_items)]
                written += engine.write_ids(
                    writer, table, ids_query(engine, table, self.buckets, writer.first_second, kind)
                )
            for table, truth in staged.truth.items():
                one, number = table[:-1], "id" if table == "items" else f"local * {self.buckets} + bucket"
                rows = f"SELECT ({number})::BIGINT AS {one}, known.* EXCLUDE (raw) FROM {truth} AS known"
                rows += f" JOIN {table} ON known.raw = {table}.raw"
                files |= engine.write_rows(folder, f"truth_{table}.parquet", rows, "*", "ALL")
            if self.config.min_interactions > 1:
                last = writer.name(writer.spans - 1)
                order = "time, nanos, rowid"
                files |= engine.write_rows(folder, f"waiting/{last}.parquet", _WAITING, "user, item, time", order)
            earlier = len(self.known.manifest["preparations"]) if self.known is not None else 0
            if self.config.columns.title is not None:
                files |= engine.write_rows(folder, f"{TITLES}/{earlier:04d}.parquet", _FIRST_TITLES, "*", "item")
            files |= write_rows(folder, f"rejected/{earlier:04d}.parquet", staged.table.schema, [staged.table])
            written += engine.count_items(writer)
            entries = writer.entries(written)
        return entries, files


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
