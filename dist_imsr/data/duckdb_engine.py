"""The engine of one machine: DuckDB, out of core, with a thread for each bucket that is written."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from dist_imsr.addresses import Location
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.late import history_of
from dist_imsr.data.manifest import Files
from dist_imsr.data.sources import SourceConfig, queries
from dist_imsr.data.sql import quoted, quoted_paths
from dist_imsr.data.staging import Staged, stage
from dist_imsr.data.table_files import write_rows
from dist_imsr.data.workspace import Database, ProgressDisplay
from dist_imsr.data.writer import BYTES_PER_ROW, Interactions, SpanFile, SpanWriter

DATABASE_SHARE = 0.7  # of the memory limit; the rest is for Python, Arrow and numpy
_PYTHON_BYTES = 200 * 2**20  # for Python and its libraries, besides the current bucket
# A number of 128 bits: nanoseconds until 2100 need 62, and compare much faster than a row of columns. The bucket must
# not depend on machine or version: it is the first 16 hexadecimal digits of MD5, modulo.
_MACROS = (
    "moment(time, nanos, place) AS ((time * 1000000000 + nanos)::HUGEINT << 64) + place",
    "entering(second, time, nanos, place) AS row(second, time, nanos, place)",
    "bucket_of(raw, buckets) AS ('0x' || left(md5(raw::VARCHAR), 16))::UBIGINT % buckets",
    "approx_percentile(value, share) AS approx_quantile(value, share)",
)


class DuckDBEngine:
    """Methods are those of `dist_imsr.data.engine.Engine`.

    Args:
        database: an empty one.
        display: shows the progress.
        memory: bytes of the process.
        threads: that write buckets, as far as the memory allows.
    """

    def __init__(self, database: Database, display: ProgressDisplay, memory: int, threads: int) -> None:
        self._database, self._display, self._memory, self._threads = database, display, memory, threads
        self.run = database.run
        for macro in _MACROS:
            database.run(f"CREATE MACRO {macro}")

    def stage(self, config: SourceConfig, appended: Mapping[str, str] | None) -> Staged:
        files = queries(config, self._database, self._display, appended)
        return stage(files, config.input_name, config.max_bad_fraction, self._database, self._display)

    def open_known(self, known: Dataset) -> None:
        for table in ("users", "items"):
            relation = _parquet([known.local(entry.ids_file(table)) for entry in known.entries])
            self.run(
                f"CREATE VIEW known_{table} AS SELECT raw, {table[:-1]} AS id FROM {relation} WHERE raw IS NOT NULL"
            )
        if known.waiting_files:
            relation = _parquet([known.local(name) for name in known.waiting_files])
            self.run(f"CREATE VIEW waiting AS SELECT * FROM {relation}")

    def add_waiting(self, known: Dataset) -> None:
        if known.waiting_files:
            self.run("INSERT INTO events (user, item, time, nanos, breaks) SELECT user, item, time, 0, 0 FROM waiting")

    def add_history(self, known: Dataset, users: str) -> None:
        ids = self._database.table(f"{users} ORDER BY id")["id"].to_numpy()
        buckets = ids % known.buckets
        parts = [history_of(known, int(bucket), ids[buckets == bucket]) for bucket in np.unique(buckets)]
        self.register("history", pa.concat_tables(parts or [history_of(known, 0, ids)]))

    def kinds_of_ids(self, relation: str) -> dict[str, str]:
        return {
            table: self.run(f"DESCRIBE SELECT {column} FROM {name}")[0][1]
            for table in ("users", "items")
            for column, name in [("raw", f"known_{table}") if relation == "known" else (table[:-1], "events")]
        }

    def create(self, name: str, sql: str, progress: Callable[[float], None] | None = None) -> None:
        self.run(f"CREATE TABLE {name} AS {sql}", progress)

    def register(self, name: str, table: pa.Table) -> None:
        self._database.connection.register(name, table)

    def mark(self, reason: str, rows: str, progress: Callable[[float], None] | None = None) -> int:
        [(count,)] = self.run(f"UPDATE events SET reason = {quoted(reason)} WHERE rowid IN ({rows})", progress)
        return int(count)

    def numbered(self, rows: str, order: str, progress: Callable[[float], None] | None = None) -> str:
        return f"SELECT *, row_number() OVER (ORDER BY {order}) - 1 AS number FROM ({rows})"

    def with_spans(self, rows: str) -> str:
        return f"SELECT * FROM ({rows}) AS rows ASOF JOIN new_spans ON rows.second >= new_spans.first_second"

    def nth_smallest(self, column: str, n: int) -> str:
        return f"min({column}, {n})[{n}]"

    def write_buckets(
        self, writer: SpanWriter, rows: str, sizes: np.ndarray, progress: Callable[[float], None]
    ) -> Iterator[SpanFile]:
        needed = int(sizes.max()) * BYTES_PER_ROW
        workers = max(1, min(self._threads, int(self._memory / 4) // max(needed, 1)))
        reserved = (workers + 1) * needed + _PYTHON_BYTES
        limit = min(self._memory * DATABASE_SHARE, max(self._memory - reserved, self._memory / 4))
        self._database.set_memory_limit(int(limit))
        with self._display.phase("sort") as sorting:
            query = f"SELECT * EXCLUDE (bucket, nanos, rowid) FROM ({rows}) ORDER BY bucket::USMALLINT, user, time, "
            schema, batches = self._database.stream(f"{query} nanos, rowid", sorting)
        parts = _split_stream(batches, schema, sizes.tolist())
        with ThreadPoolExecutor(workers) as pool:
            pending = deque[Future[list[SpanFile]]]()
            for bucket, part in enumerate(parts):
                pending.append(pool.submit(writer.write, bucket, Interactions.of(part)))
                if len(pending) > workers:
                    yield from pending.popleft().result()
                progress((bucket + 1) / len(sizes))
            for written in pending:
                yield from written.result()

    def write_ids(self, writer: SpanWriter, table: str, rows: str) -> Iterator[SpanFile]:
        one = table[:-1]
        schema, batches = self._database.stream(f"SELECT {one}, raw FROM ({rows}) ORDER BY span, {one}")
        for span, part in enumerate(_split_stream(batches, schema, writer.new_ids(table))):
            yield writer.write_ids(table, span, schema, [part])

    def count_items(self, writer: SpanWriter) -> Iterator[SpanFile]:
        return map(writer.count_items, range(writer.spans))

    def write_rows(self, folder: Location, name: str, rows: str, columns: str, order: str) -> Files:
        schema, batches = self._database.stream(f"SELECT {columns} FROM ({rows}) ORDER BY {order}")
        return write_rows(folder, name, schema, batches)


def _parquet(paths: list[Path]) -> str:
    return f"read_parquet({quoted_paths(paths)}, hive_partitioning = false)"


def _split_stream(batches: Iterable[pa.RecordBatch], schema: pa.Schema, sizes: Iterable[int]) -> Iterator[pa.Table]:
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
