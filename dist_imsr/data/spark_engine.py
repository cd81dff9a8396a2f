"""The engine of a cluster: Spark shuffles, joins, sorts and numbers; its tasks read pieces of files and write buckets.

Tasks run the code that reads and writes on one machine, on Arrow batches. Neither rows nor users nor items pass through
the driver.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import arrow_udf, col, monotonically_increasing_id
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

from dist_imsr.addresses import Location
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.input_files import InputFile
from dist_imsr.data.late import history_of
from dist_imsr.data.manifest import Files
from dist_imsr.data.pieces import PLACE_BITS, Piece, Summary, merged, read_piece
from dist_imsr.data.remote import Unreachable
from dist_imsr.data.source_files import SourceFile, compare_files, find_sources, survey
from dist_imsr.data.sources import SourceConfig
from dist_imsr.data.spark_session import SparkConfig, spark_session
from dist_imsr.data.spark_tables import SparkTables, spark_tables
from dist_imsr.data.spark_tasks import Batches, results_of_each, results_of_parts, rows_of_each
from dist_imsr.data.sql import quoted
from dist_imsr.data.staging import Staged, refuse_bad_rows
from dist_imsr.data.table_files import write_rows
from dist_imsr.data.workspace import ProgressDisplay
from dist_imsr.data.writer import Interactions, SpanFile, SpanWriter, id_type

_KINDS = {  # Arrow's types of ids by DuckDB's: those that Spark has
    "VARCHAR": pa.string(),
    "TINYINT": pa.int8(),
    "SMALLINT": pa.int16(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
}
_MOMENT = "time BIGINT, nanos INT, place BIGINT"
_FUNCTIONS = (
    f"moment({_MOMENT}) RETURNS STRUCT<{_MOMENT}> RETURN named_struct('time', time, 'nanos', nanos, 'place', place)",
    f"entering(second BIGINT, {_MOMENT}) RETURNS STRUCT<second BIGINT, {_MOMENT}> "
    "RETURN named_struct('second', second, 'time', time, 'nanos', nanos, 'place', place)",
    "bucket_of(raw STRING, buckets INT) RETURNS BIGINT "
    "RETURN CAST(CAST(conv(left(md5(CAST(raw AS BINARY)), 16), 16, 10) AS DECIMAL(20, 0)) % buckets AS BIGINT)",
)
_EVENTS = {
    "time": pa.int64(),
    "nanos": pa.int32(),
    "reason": pa.string(),
    "title": pa.string(),
    "rowid": pa.int64(),
    "summary": pa.string(),
    "examples": pa.string(),
}
_PART_BITS = 33  # of monotonically_increasing_id: the row's place in its partition
_EXAMPLES_AT_ONCE = 64  # pieces


class SparkEngine:
    """Methods are those of `dist_imsr.data.engine.Engine`.

    Args:
        session: of Spark.
        display: shows the progress.
        memory: bytes of a task's Python.
        tables: of the session.
    """

    def __init__(self, session: SparkSession, display: ProgressDisplay, memory: int, tables: SparkTables) -> None:
        self._session, self._display, self._memory, self._tables = session, display, memory, tables
        self._registered: dict[str, pa.Table] = {}
        self._kinds: dict[str, str] = {}
        self._config: SourceConfig | None = None
        self._known: Dataset | None = None
        for function in _FUNCTIONS:
            session.sql(f"CREATE OR REPLACE TEMPORARY FUNCTION {function}")

    def stage(self, config: SourceConfig, appended: Mapping[str, str] | None) -> Staged:
        self._config = config
        with self._display.phase("survey"):
            files = self._survey(config)
            for key, kind in files[0].kinds:
                if kind not in _KINDS:
                    name = files[0].file.name
                    raise ValueError(
                        f"columns.{key}: {name} has {kind}, which Spark has not: convert it to BIGINT or text"
                    )
            self._kinds = dict(files[0].kinds)
            compare_files(files, appended)
        pieces = [piece for file in files for piece in file.pieces]
        with self._display.phase("read"):
            summaries = self._read(pieces)
        staged = merged(pieces, summaries, self._examples(summaries))
        staged.digests = {file.file.name: file.digest for file in files}
        refuse_bad_rows(staged, config.input_name, config.max_bad_fraction)
        return staged

    def _survey(self, config: SourceConfig) -> list[SourceFile]:
        """What each input file is.

        Raises:
            ValueError: naming the first file that is refused.
            OSError: naming the first one that is gone or cannot be reached.
        """
        paths, start, memory = find_sources(config), Path.cwd(), self._memory // 2

        def one(number: int) -> list[SourceFile | Exception]:
            try:
                return [survey(paths[number], config, start, memory)]
            except (ValueError, OSError) as error:
                return [error]

        files = []
        for found in results_of_each(self._session, len(paths), one):
            if isinstance(found, Exception):
                raise found
            files.append(found)
        return files

    def _read(self, pieces: list[Piece], first: int = 0) -> list[Summary]:
        """Adds the rows of pieces, numbered from ``first`` on, to ``events``.

        Raises:
            ValueError: if a piece cannot be read.
            Unreachable: if it is remote, and gone.
        """
        assert self._config is not None
        config, memory = self._config, self._memory // 2
        schema = pa.schema({key: _KINDS[kind] for key, kind in self._kinds.items()} | _EVENTS)

        def read(number: int) -> Batches:
            return read_piece(pieces[number], first + number, config, memory, schema)

        rows = self._tables.stored(rows_of_each(self._session, len(pieces), read, from_arrow_schema(schema)))
        rows.createOrReplaceTempView("read")
        found = self.run(f"SELECT shiftright(rowid, {PLACE_BITS}), summary FROM read WHERE summary IS NOT NULL")
        summaries = {piece - first: Summary(**json.loads(text)) for piece, text in found}
        for number in range(len(pieces)):
            if summaries[number].error:
                raise (Unreachable if summaries[number].unreachable else ValueError)(summaries[number].error)
        events = self._session.sql("SELECT * EXCEPT (summary, examples) FROM read WHERE summary IS NULL")
        if first:
            events = self._session.table("events").unionByName(events)
        events.createOrReplaceTempView("events")
        return [summaries[number] for number in range(len(pieces))]

    def _examples(self, summaries: list[Summary]) -> Iterator[list[Any]]:
        """The examples of each piece that has rejected rows, some pieces at a time."""
        having = [number for number, summary in enumerate(summaries) if summary.rejected]
        for at in range(0, len(having), _EXAMPLES_AT_ONCE):
            numbers = [number << PLACE_BITS for number in having[at : at + _EXAMPLES_AT_ONCE]]
            listed = ", ".join(map(str, numbers))
            rows = self.run(f"SELECT rowid, examples FROM read WHERE summary IS NOT NULL AND rowid IN ({listed})")
            yield from (json.loads(examples) for _, examples in sorted(rows))

    def open_known(self, known: Dataset) -> None:
        for table in ("users", "items"):
            rows = self._files_of(known, [entry.ids_file(table) for entry in known.entries])
            ids = rows.selectExpr("raw", f"{table[:-1]} AS id").where("raw IS NOT NULL")
            ids.createOrReplaceTempView(f"known_{table}")
        if known.waiting_files:
            self._files_of(known, known.waiting_files).createOrReplaceTempView("waiting")
        self._known = known

    def add_waiting(self, known: Dataset) -> None:
        pieces = [Piece(InputFile(name, Path()), known=known) for name in known.waiting_files]
        if pieces:
            [(last,)] = self.run("SELECT coalesce(max(rowid), 0) FROM events")
            self._read(pieces, 1 + (last >> PLACE_BITS))

    def add_history(self, known: Dataset, users: str) -> None:
        def history(rows: pa.Table) -> pa.Table:
            ids = np.sort(rows["id"].to_numpy())
            return history_of(known, int(rows["bucket"][0].as_py()), ids)

        late = self._session.sql(f"SELECT id, id % {known.buckets} AS bucket FROM ({users})")
        found = late.groupBy("bucket").applyInArrow(history, "user BIGINT, item BIGINT, time BIGINT")
        self._tables.stored(found).createOrReplaceTempView("history")

    def kinds_of_ids(self, relation: str) -> dict[str, str]:
        if relation == "events":
            return {f"{key}s": kind for key, kind in self._kinds.items()}
        assert self._known is not None
        names = {kind: name for name, kind in _KINDS.items()}
        return {table: names[self._known.raw_id_type(table)] for table in ("users", "items")}

    def run(self, sql: str, progress: Callable[[float], None] | None = None) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._session.sql(sql).collect()]

    def create(self, name: str, sql: str, progress: Callable[[float], None] | None = None) -> None:
        self._tables.create(name, self._session.sql(sql))

    def register(self, name: str, table: pa.Table) -> None:
        self._registered[name] = table
        self._session.createDataFrame(table).createOrReplaceTempView(name)

    def mark(self, reason: str, rows: str, progress: Callable[[float], None] | None = None) -> int:
        self.create("marked", f"SELECT rowid AS place FROM ({rows})")
        [(count,)] = self.run("SELECT count(*) FROM marked")
        if count:
            changed = f"coalesce(reason, CASE WHEN place IS NOT NULL THEN {quoted(reason)} END) AS reason"
            joined = "events LEFT JOIN marked ON events.rowid = marked.place"
            self.create("events", f"SELECT * EXCEPT (reason, place), {changed} FROM {joined}")
        return int(count)

    def numbered(self, rows: str, order: str, progress: Callable[[float], None] | None = None) -> str:
        ordered = self._session.sql(rows).orderBy(order).withColumn("number", monotonically_increasing_id())
        self._tables.stored(ordered).createOrReplaceTempView("ordered")
        part = f"shiftright(number, {_PART_BITS})"
        counts = sorted(self.run(f"SELECT {part}, count(*) FROM ordered GROUP BY ALL"))
        parts, sizes = np.array(counts, np.int64).reshape(-1, 2).T
        self.register("offsets", pa.table({"part": parts, "offset": sizes.cumsum() - sizes}))
        number = f"(number & {(1 << _PART_BITS) - 1}) + offset"
        return f"SELECT ordered.* EXCEPT (number), {number} AS number FROM ordered JOIN offsets ON {part} = part"

    def with_spans(self, rows: str) -> str:
        edges = self._registered["new_spans"]["first_second"].to_numpy()

        @arrow_udf("long")
        def span_of(second: pa.Array) -> pa.Array:
            return pa.array(np.searchsorted(edges, second.to_numpy(zero_copy_only=False), side="right") - 1, pa.int64())

        self._session.udf.register("span_of", span_of)
        return f"SELECT *, span_of(second) AS span FROM ({rows})"

    def nth_smallest(self, column: str, n: int) -> str:
        return f"try_element_at(sort_array(collect_list({column})), {n})"

    def write_buckets(
        self, writer: SpanWriter, rows: str, sizes: np.ndarray, progress: Callable[[float], None]
    ) -> list[SpanFile]:
        def write(batches: Batches) -> list[SpanFile]:
            table = pa.Table.from_batches(batches)
            bucket = table["bucket"][0].as_py()
            return writer.write(bucket, Interactions.of(table.drop_columns("bucket")))

        by_bucket = self._session.sql(rows).repartitionById(writer.buckets, col("bucket").cast("int"))
        ordered = by_bucket.sortWithinPartitions("user", "time", "nanos", "rowid").drop("nanos", "rowid")
        written = results_of_parts(ordered, write)
        kinds = id_type(writer.most_locals), id_type(writer.most_items), pa.int64()
        none = pa.table({name: pa.array([], kind) for name, kind in zip(("user", "item", "time"), kinds, strict=True)})
        empty = np.flatnonzero(sizes == 0).tolist()
        if empty:
            written += results_of_each(
                self._session, len(empty), lambda number: writer.write(empty[number], Interactions.of(none))
            )
        return written

    def write_ids(self, writer: SpanWriter, table: str, rows: str) -> list[SpanFile]:
        one = table[:-1]
        frame = self._session.sql(rows)
        kind = pa.int64() if one == "user" else id_type(writer.most_items)
        schema = pa.schema({one: kind, "raw": _KINDS[self._kinds[one]]})

        def write(batches: Batches) -> Iterator[SpanFile]:
            parts = (part for batch in batches for part in _by_span(batch))
            for span, group in itertools.groupby(parts, key=lambda part: part[0]):
                rest = (part.select([one, "raw"]).cast(schema) for _, part in group)
                yield writer.write_ids(table, span, schema, rest)

        by_span = frame.repartition(writer.spans, "span").sortWithinPartitions("span", one)
        written = results_of_parts(by_span, write)
        empty = [span for span, count in enumerate(writer.new_ids(table)) if not count]
        return written + [writer.write_ids(table, span, schema, []) for span in empty]

    def count_items(self, writer: SpanWriter) -> list[SpanFile]:
        return results_of_each(self._session, writer.spans, lambda span: [writer.count_items(span)])

    def write_rows(self, folder: Location, name: str, rows: str, columns: str, order: str) -> Files:
        frame = self._session.sql(rows)
        ordered = frame.repartition(1).sortWithinPartitions(*order.split(", ")).selectExpr(*columns.split(", "))
        schema = pa.schema([(field.name, field.type) for field in to_arrow_schema(ordered.schema)])

        def write(batches: Batches) -> list[Files]:
            return [write_rows(folder, name, schema, (batch.cast(schema) for batch in batches))]

        [files] = results_of_parts(ordered, write) or [write_rows(folder, name, schema, [])]
        return files

    def _files_of(self, known: Dataset, names: list[str]) -> DataFrame:
        """Parquet files of a data set, which tasks have read."""
        schema = known.schema_of(names[-1]).remove_metadata()

        def read(number: int) -> Batches:
            with pq.ParquetFile(known.local(names[number])) as file:
                yield from (batch.cast(schema) for batch in file.iter_batches())

        return self._tables.stored(rows_of_each(self._session, len(names), read, from_arrow_schema(schema)))


@contextlib.contextmanager
def spark_engine(
    config: SparkConfig, display: ProgressDisplay, memory: int, parent: Location, shared: bool
) -> Iterator[SparkEngine]:
    """An engine with a session and a folder for its tables, which is deleted at the end of the block.

    Args:
        config: of Spark.
        display: shows the progress.
        memory: as of `SparkEngine`.
        parent: of the folder.
        shared: whether all machines of a cluster reach it.

    Raises:
        ValueError: if they do not, and Spark runs on several.
    """
    with spark_session(config) as session:
        if not shared and not session.sparkContext.master.startswith("local"):
            raise ValueError(
                "temp_dir: None; expected a folder that all of Spark's machines share, or an address that Spark "
                "writes, such as hdfs://HOST/tmp, if the output is remote"
            )
        with spark_tables(session, parent) as tables:
            yield SparkEngine(session, display, memory, tables)


def _by_span(batch: pa.RecordBatch) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each span, in which they are ordered."""
    spans = batch.column("span").to_numpy()
    starts = np.flatnonzero(np.diff(spans, prepend=-1))
    for first, end in itertools.pairwise([*starts.tolist(), len(spans)]):
        yield int(spans[first]), pa.Table.from_batches([batch.slice(first, end - first)])
