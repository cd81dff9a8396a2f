"""Prepares a raw log: filters it, numbers users and items, cuts it into spans, writes Arrow files and a manifest.

DuckDB does the steps that need all rows, out of core: it stages the input in the input's order (rows of one second in
the order of its fractions), counts, numbers, and sorts once by (user, moment). A moment holds the unix second in its
upper bits and the row's place in the staged table in its lower bits, so that one integer orders interactions by time
with ties in the input's order. User ids are contiguous by bucket; so the sorted rows stream out bucket by bucket, and
numpy cuts each bucket into its spans.
"""

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from dist_imsr.checks import require
from dist_imsr.config import plain
from dist_imsr.data.dataset import FORMAT_VERSION
from dist_imsr.data.findings import warnings_of
from dist_imsr.data.row_filters import leave_out, order_by_fraction
from dist_imsr.data.source_query import LEFT_OUT
from dist_imsr.data.sources import SourceConfig, input_files, queries
from dist_imsr.data.staging import stage
from dist_imsr.data.workspace import Database, ProgressDisplay, parse_bytes, replace_folder
from dist_imsr.data.writer import (
    BYTES_PER_ROW,
    SEQUENCE_BITS,
    SpanWriter,
    manifest_entry,
    span_edges,
    split_stream,
    write_table,
)

MANIFEST = "dataset.json"

_MOMENT = f"((time::UBIGINT << {SEQUENCE_BITS}) + events.rowid::UBIGINT)"
_LEAST_MEMORY = 256 * 2**20
_DATABASE_SHARE = 0.7  # of the memory limit; the rest is for Python, Arrow and numpy
_PYTHON_BYTES = 200 * 2**20  # for Python and its libraries, besides the current bucket

_SQL_TYPES = {pa.int32(): "INTEGER", pa.int64(): "BIGINT"}


@dataclass(kw_only=True)
class MachineOptions:
    """Buckets of users, and what preparation takes of the machine.

    Args:
        buckets: virtual shards of users; a rank owns whole buckets.
        memory_limit: of the process, e.g. 4GiB; the rest spills to disk. A limit below 1GiB may be exceeded by Python
            and the current bucket.
        threads: of DuckDB; all cores of this process by default.
        temp_dir: where to spill, and to unpack files that are compressed or must be converted; next to the output by
            default.
    """

    own_heading: ClassVar[bool] = True

    buckets: int = 64
    memory_limit: str = "4GiB"
    threads: int | None = None
    temp_dir: Path | None = None

    def __post_init__(self) -> None:
        require(1 <= self.buckets <= 2**16, "buckets", self.buckets, "1 to 65536")
        size = parse_bytes(self.memory_limit)
        require(size is not None and size >= _LEAST_MEMORY, "memory_limit", self.memory_limit, "256MiB or more")
        require(self.threads is None or self.threads >= 1, "threads", self.threads, "at least 1")


@dataclass(kw_only=True)
class PrepareConfig(MachineOptions, SourceConfig):
    """Prepares a raw log of interactions: cuts it into spans of time and buckets of users, out of core.

    Args:
        output: the folder to write; it appears only when complete.
        overwrite: replace the data set that an earlier run wrote there.
    """

    output: Path
    overwrite: bool = False

    def __post_init__(self) -> None:
        SourceConfig.__post_init__(self)
        MachineOptions.__post_init__(self)


def prepare(config: PrepareConfig, console: Console) -> dict[str, Any]:
    """Writes the prepared folder of design.md section 6.

    Args:
        config: the input, the options and the output.
        console: for the progress.

    Returns:
        The manifest, as written to ``dataset.json``.

    Raises:
        ValueError: naming key, file or row, if the input cannot be read, has too many bad rows, has no user left after
            filtering or cannot be cut into spans, if the output may not be written, or if the memory limit is too low.
    """
    memory = parse_bytes(config.memory_limit) or 0
    input_files(config)  # what is missing is known before anything starts
    threads = config.threads or len(os.sched_getaffinity(0))
    with replace_folder(config.output, MANIFEST, config.overwrite) as folder:
        parent = config.temp_dir or folder
        with ProgressDisplay(console) as display, Database(parent, int(memory * _DATABASE_SHARE), threads) as database:
            try:
                preparation = _Preparation(config, database, display, folder, memory)
                manifest = preparation.run()
            except duckdb.OutOfMemoryException as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"memory_limit: {config.memory_limit} is too little here ({reason})") from error
            except (duckdb.Error, pa.ArrowException) as error:
                raise ValueError(f"{config.input_name}: {' '.join(str(error).split())}") from error
        for warning in preparation.warnings:
            console.print(f"warning: {warning}", highlight=False, soft_wrap=True, markup=False)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


class _Preparation:
    """The steps of one preparation; its state are the tables events, unparsed, users and items."""

    def __init__(
        self, config: PrepareConfig, database: Database, display: ProgressDisplay, folder: Path, memory: int
    ) -> None:
        self.config, self.database, self.display, self.folder, self.memory = config, database, display, folder, memory
        self.name = config.input_name
        self.warnings: list[str] = []

    def run(self) -> dict[str, Any]:
        config = self.config
        files = queries(config, self.database, self.display)
        staged = stage(files, self.name, config.max_bad_fraction, self.database, self.display)
        assert staged.last is not None
        order_by_fraction(self.database, self.display)
        leave_out(config, config.min_interactions, self.database, self.display)
        left_out = self.database.run(
            f"SELECT substr(reason, {len(LEFT_OUT) + 1}), count(*) FROM events WHERE starts_with(reason, '{LEFT_OUT}') "
            "GROUP BY reason ORDER BY reason"
        )
        self._number_users(dict(left_out))
        self._number_items()
        buckets = self._buckets()  # [buckets, 2]: users and interactions
        n_users, interactions = (int(total) for total in buckets.sum(axis=0))
        try:
            edges = span_edges(staged.last.period or self._period(), config.alpha, config.spans)
        except ValueError as error:
            raise ValueError(f"{error} ({self.name})") from None
        conditions = ", ".join(f"count(*) FILTER (first_time < {edge})" for edge in edges[1:-1])
        [(*known, n_items)] = self.database.run(f"SELECT {conditions}, count(*) FROM items")
        writer = SpanWriter(self.folder, edges, n_users, n_items)
        self._write_spans(writer, buckets[:, 1])
        self._write_tables(writer, staged.table, staged.last.truth)
        self.warnings = warnings_of(writer, self.database)
        return {
            "format_version": FORMAT_VERSION,
            "source": {"name": config.source, "input": plain(config.input), "read_as": dict(staged.read_as)},
            "options": _options(config),
            "span_edges": edges.tolist(),
            "users": n_users,
            "items": n_items,
            "interactions": interactions,
            "interactions_per_span": writer.interactions,
            "active_users_per_span": writer.active_users,
            "trainable_users_per_span": writer.trainable_users,
            "tested_users_per_span": writer.tested_users,
            "items_by_span": [*known, n_items],
            "bucket_offsets": [0, *buckets[:, 0].cumsum().tolist()],
            "rejected": staged.ordered_rejected,
            "left_out": dict(left_out),
            "rows_read": staged.rows,
            "files": dict(sorted(writer.files.items())),
        }

    def _number_users(self, left_out: dict[str, int]) -> None:
        config, run = self.config, self.database.run
        with self.display.phase("users") as progress:
            run(
                f"CREATE TABLE counts AS SELECT user AS raw, count(*) AS interactions, min({_MOMENT}) AS first, "
                "max(time) AS last_time FROM events WHERE reason IS NULL GROUP BY user",
                progress,
            )
            # The bucket must not depend on machine or version: it is the first 16 hexadecimal digits of MD5, modulo.
            run(f"""
                CREATE TABLE users AS SELECT *, row_number() OVER (ORDER BY bucket, first) - 1 AS id FROM (
                    SELECT *, ('0x' || left(md5(raw::VARCHAR), 16))::UBIGINT % {config.buckets} AS bucket
                    FROM counts WHERE interactions >= {config.min_interactions})
            """)
        [(kept, busiest)] = run("SELECT (SELECT count(*) FROM users), (SELECT max(interactions) FROM counts)")
        if kept == 0:
            others = "".join(f"; left out: {count} {reason}" for reason, count in left_out.items())
            raise ValueError(
                f"min_interactions: no user of {self.name} has {config.min_interactions}; "
                f"the busiest user has {busiest or 0} interactions{others}"
            )

    def _number_items(self) -> None:
        with self.display.phase("items") as progress:
            self.database.run(
                f"""
                CREATE TABLE items AS
                SELECT *, first >> {SEQUENCE_BITS} AS first_time, row_number() OVER (ORDER BY first) - 1 AS id FROM (
                    SELECT item AS raw, count(*) AS interactions, min({_MOMENT}) AS first
                    FROM events SEMI JOIN users ON events.user = users.raw WHERE reason IS NULL GROUP BY item)
                """,
                progress,
            )

    def _buckets(self) -> np.ndarray:
        """The numbers of users and interactions of each bucket, ``[buckets, 2]`` int64."""
        config = self.config
        buckets = np.zeros((config.buckets, 2), np.int64)
        for bucket, users, interactions in self.database.run(
            "SELECT bucket, count(*), sum(interactions)::BIGINT FROM users GROUP BY bucket"
        ):
            buckets[bucket] = users, interactions
        needed = int(buckets[:, 1].max()) * BYTES_PER_ROW
        if needed > self.memory / 2:
            enough = math.ceil(config.buckets * needed / (self.memory / 2))
            raise ValueError(
                f"buckets: {config.buckets} are too few for memory_limit {config.memory_limit}, which holds one at a "
                f"time; use {enough} or more"
            )
        return buckets

    def _period(self) -> tuple[int, int]:
        """The seconds of the first and of the last interaction."""
        [(first, last)] = self.database.run(f"SELECT min(first) >> {SEQUENCE_BITS}, max(last_time) FROM users")
        return first, last

    def _write_spans(self, writer: SpanWriter, sizes: np.ndarray) -> None:
        user, item = (_SQL_TYPES[kind] for kind in (writer.user_type, writer.item_type))
        query = f"""
            SELECT users.id::{user} AS user, items.id::{item} AS item, {_MOMENT} AS moment
            FROM events JOIN users ON events.user = users.raw JOIN items ON events.item = items.raw
            WHERE reason IS NULL ORDER BY users.id, moment
        """
        reserved = int(sizes.max()) * BYTES_PER_ROW + _PYTHON_BYTES
        limit = min(self.memory * _DATABASE_SHARE, max(self.memory - reserved, self.memory / 4))
        self.database.set_memory_limit(int(limit))
        with self.display.phase("sort") as progress:
            batches = self.database.stream(query, progress)
        with self.display.phase("write") as progress:
            for bucket, rows in enumerate(split_stream(batches, sizes.tolist())):
                writer.write(bucket, rows)
                progress((bucket + 1) / len(sizes))

    def _write_tables(self, writer: SpanWriter, rejected: pa.Table, truth: dict[str, str]) -> None:
        user, item = (_SQL_TYPES[kind] for kind in (writer.user_type, writer.item_type))
        tables = {
            "users": f"SELECT id::{user} AS user, raw, bucket::INTEGER AS bucket, interactions FROM users ORDER BY id",
            "items": f"SELECT id::{item} AS item, raw, first_time::BIGINT AS first_time, interactions FROM items "
            "ORDER BY id",
        }
        for name, table in truth.items():
            numbered = f"SELECT id::{_SQL_TYPES[getattr(writer, f'{name[:-1]}_type')]} AS {name[:-1]}, known.*"
            tables[f"truth_{name}"] = (
                f"{numbered} EXCLUDE (raw) FROM {table} AS known JOIN {name} ON known.raw = {name}.raw ORDER BY ALL"
            )
        with self.display.phase("tables"):
            for name, query in tables.items():
                path = self.folder / f"{name}.parquet"
                rows = write_table(path, self.database.stream(query))
                writer.files[path.name] = manifest_entry(path, rows)
            path = self.folder / "rejected.parquet"
            pq.write_table(rejected, path)
            writer.files[path.name] = manifest_entry(path, len(rejected))


def _options(config: PrepareConfig) -> dict[str, Any]:
    """The options that determine the data, for the manifest: those of spans and buckets, and others that are set."""
    always = ("min_interactions", "alpha", "spans", "buckets")
    default = SourceConfig(source=config.source)
    names = [field.name for field in fields(SourceConfig) if field.name not in ("source", "input", *always)]
    options = {name: getattr(config, name) for name in always}
    options |= {name: getattr(config, name) for name in names if getattr(config, name) != getattr(default, name)}
    if config.behaviours is not None:
        options["behaviours"] = config.behaviours
    if config.source in ("csv", "parquet"):
        options["columns"] = config.columns
    if config.source == "drift":
        options["drift"] = config.drift
    sections = ("columns", "drift")
    return {key: plain(asdict(value) if key in sections else value) for key, value in options.items()}
