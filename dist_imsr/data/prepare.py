"""Prepares a raw log as a data set of spans, adds later logs to it, and takes rows out of it."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import duckdb
import pyarrow as pa
from rich.console import Console

from dist_imsr.addresses import Address, Location
from dist_imsr.checks import parse_bytes, require
from dist_imsr.config import plain, section_of
from dist_imsr.data.cache import CacheOptions
from dist_imsr.data.changes import Change, changing, creating
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.duckdb_engine import DATABASE_SHARE, DuckDBEngine
from dist_imsr.data.engine import Engine
from dist_imsr.data.forget import forget
from dist_imsr.data.manifest import FORMAT_VERSION, Files, SpanEntry, read_manifest, write_manifest
from dist_imsr.data.preparation import Preparation
from dist_imsr.data.remote_changes import changing_remote, creating_in_place, creating_remote
from dist_imsr.data.retire import retire
from dist_imsr.data.sources import SourceConfig, input_files
from dist_imsr.data.spark_session import SparkConfig
from dist_imsr.data.user_list import read_user_list
from dist_imsr.data.workspace import Database, ProgressDisplay

_LEAST_MEMORY = 256 * 2**20
# The options of each log; the others are those of the data set.
_OF_A_LOG = ("input", "from_", "until", "span_edges")


@dataclass(kw_only=True)
class MachineOptions:
    """Buckets of users, and what preparation takes of the machine.

    Args:
        engine: duckdb, on this machine; or spark, on a cluster that reads and writes the same files.
        spark: of --engine spark.
        buckets: virtual shards of users; a rank owns whole buckets.
        memory_limit: of the process, e.g. 4GiB; the rest spills to disk. A limit below 1GiB may be exceeded by Python
            and the current bucket. With Spark, of the Python of each task.
        threads: of DuckDB; all cores of this process by default.
        temp_dir: where to spill, and to unpack files that are compressed or must be converted; next to the output by
            default, or in the cache if that is remote. With Spark, a folder for the tables of its steps that all of its
            machines reach, or an address that Spark itself can write, such as hdfs://HOST/tmp.
    """

    own_heading: ClassVar[bool] = True

    engine: Literal["duckdb", "spark"] = "duckdb"
    spark: SparkConfig = field(default_factory=SparkConfig)
    buckets: int = 64
    memory_limit: str = "4GiB"
    threads: int | None = None
    temp_dir: Location | None = None

    def __post_init__(self) -> None:
        require(1 <= self.buckets <= 2**16, "buckets", self.buckets, "1 to 65536")
        size = parse_bytes(self.memory_limit)
        require(size is not None and size >= _LEAST_MEMORY, "memory_limit", self.memory_limit, "256MiB or more")
        require(
            self.engine == "spark" or self.spark == SparkConfig(), "spark", self.spark, "none but with --engine spark"
        )
        require(self.threads is None or self.threads >= 1, "threads", self.threads, "at least 1")
        local = self.engine == "spark" or not isinstance(self.temp_dir, Address)
        require(local, "temp_dir", str(self.temp_dir), "a local folder, but with --engine spark")
        if self.engine == "spark" and isinstance(self.temp_dir, Path):
            require(self.temp_dir.is_dir(), "temp_dir", str(self.temp_dir), "a folder that exists, with --engine spark")

    @property
    def memory(self) -> int:
        """The memory limit in bytes."""
        return parse_bytes(self.memory_limit) or 0


@dataclass(kw_only=True)
class PrepareConfig(CacheOptions, MachineOptions, SourceConfig):
    """Prepares a raw log of interactions: cuts it into spans of time and buckets of users, out of core.

    Args:
        source: the format: taobao, amazon, movielens, recbole, tmall, yelp, gowalla, complete-journey, csv or parquet;
            or drift, which generates interactions with planted truth. With append, that of the data set.
        output: the folder to write, or its address (s3://, gs://, hdfs:// or abfs://); it appears only when complete.
        overwrite: replace the data set that an earlier run wrote there.
        append: in the place of output, the prepared folder, or its address, to which the input is added as further
            spans. Source, columns and filters are those of the data set. A log that covers several spans adds several.
        late: rows before the end of the last span of append: reject them (too many refuse the log, as for any bad
            rows), or let those that the data do not hold yet enter the next span (into_next).
        count_users: which rows count for min_interactions: those of the whole_log, as in the paper, or only those
            so_far, as in an append: then a user's rows wait until there are enough, and enter the span of the row that
            completes them.
        retire_before: with append, the first span whose rows stay: those of the spans before it are deleted. Counts and
            ids stay.
        forget_users: with append, a file of raw user ids, as for launch/recommend.py: all that the data set holds of
            these users is removed, but for the numbers of interactions of items. Ids that are not there are counted.
        run_dir: with forget_users, the folders of runs that were trained on the data: the users' interests are removed
            from their checkpoints and exported spans.
    """

    source: str = ""
    output: Location | None = None
    overwrite: bool = False
    append: Location | None = None
    late: Literal["reject", "into_next"] = "reject"
    count_users: Literal["whole_log", "so_far"] = "whole_log"
    retire_before: int | None = None
    forget_users: Path | None = None
    run_dir: list[Path] | Path | None = None

    def __post_init__(self) -> None:
        if self.append is None:
            require(self.output is not None, "output", None, "a folder to write, or --append FOLDER")
            require(self.late == "reject", "late", self.late, "reject, if nothing is appended")
            for key in ("retire_before", "forget_users"):
                require(getattr(self, key) is None, key, getattr(self, key), "none without append")
        else:
            require(self.output is None, "output", str(self.output), "none with append")
            require(not self.overwrite, "overwrite", True, "false with append")
            manifest = read_manifest(self.append, "append")
            self._inherit(manifest)
            self._check_retired(len(manifest["spans"]))
        require(
            self.forget_users is not None or not self.run_dirs, "run_dir", self.run_dir, "none without forget_users"
        )
        require(bool(self.source), "source", self.source, "the format of the input")
        SourceConfig.__post_init__(self)
        MachineOptions.__post_init__(self)
        CacheOptions.__post_init__(self)
        if self.engine == "spark" and self.overwrite and isinstance(self.output, Address):
            raise ValueError("overwrite: --engine spark replaces no remote data: write to another folder")
        if self.append is not None and self.reads_log:
            self._refuse_options_of_the_whole()

    @property
    def reads_log(self) -> bool:
        """Whether an input is prepared or appended."""
        return self.input is not None or (self.retire_before is None and self.forget_users is None)

    @property
    def local_temp_dir(self) -> Path:
        """Where a remote data set is prepared or changed, on this machine."""
        return self.temp_dir if isinstance(self.temp_dir, Path) else self.cache_folder

    @property
    def prepared(self) -> DataConfig:
        """The data set of append."""
        assert self.append is not None
        return DataConfig(self.append, cache=self.cache, cache_limit=self.cache_limit)

    @property
    def run_dirs(self) -> list[Path]:
        """``run_dir`` as a list."""
        return [] if self.run_dir is None else [self.run_dir] if isinstance(self.run_dir, Path) else self.run_dir

    @property
    def late_before(self) -> int | None:
        """As in `RowOptions`: the end of the last span, if rows before it are rejected."""
        if self.append is None or self.late != "reject":
            return None
        return int(read_manifest(self.append)["spans"][-1]["end_second"])

    def __getstate__(self) -> dict[str, Any]:
        # For processes that may have another working directory.
        return vars(self) | {"append": self.append.resolve() if isinstance(self.append, Path) else self.append}

    def _inherit(self, manifest: dict[str, Any]) -> None:
        """Takes over the options of the data set, which the command line may repeat, but not change."""
        options = manifest["options"] | {"source": manifest["source"]}
        for one in fields(self):
            if one.name in _OF_A_LOG or (one.name not in options and one.name not in _SOURCE_FIELDS):
                continue
            default = one.default if one.default_factory is MISSING else one.default_factory()
            stored, own = options.get(one.name, default), getattr(self, one.name)
            if isinstance(stored, dict):
                stored = section_of(one.type, stored)  # type: ignore[arg-type]
            if one.name == "max_bad_fraction" and own != default:
                continue
            if own not in (default, stored):
                raise ValueError(f"{one.name}: {own!r} is not that of {self.append}, {stored!r}: leave it out")
            setattr(self, one.name, stored)

    def _check_retired(self, spans: int) -> None:
        if self.retire_before is not None:
            last = spans if self.reads_log else spans - 1  # what is appended has a span or more
            require(1 <= self.retire_before <= last, "retire_before", self.retire_before, f"a span from 1 to {last}")

    def _refuse_options_of_the_whole(self) -> None:
        wrong = {"drop_repeats": self.drop_repeats == "all", "min_users_per_item": self.min_users_per_item > 1}
        for key, is_wrong in wrong.items():
            if is_wrong:
                raise ValueError(
                    f"{key}: {self.append} was prepared with {getattr(self, key)!r}, which needs the whole log: "
                    "nothing can be appended; prepare the whole log again"
                )
        if self.source == "drift":
            raise ValueError(
                f"append: {self.append} is generated drift, which has no later logs; launch/generate.py writes some"
            )


_SOURCE_FIELDS = {one.name for one in fields(SourceConfig)}


def prepare(config: PrepareConfig, console: Console) -> dict[str, Any]:
    """Writes the prepared folder of design.md section 6, or changes one: adds spans, forgets users, retires spans.

    Args:
        config: the input, the options and the output.
        console: for the progress.

    Returns:
        The manifest, as written to ``dataset.json``; the last of its ``preparations`` is the record of the newest log.

    Raises:
        ValueError: naming key, file or row, if the input cannot be read, has too many bad rows, has no user left after
            filtering or cannot be cut into spans, if the output may not be written, if the memory limit is too low, or
            if another process appends; nothing is changed then.
    """
    if config.reads_log:
        input_files(config)  # what is missing is known before anything starts
    if config.append is not None:
        return _change(config, console)
    assert config.output is not None
    with _creating(config, config.output) as folder:
        entries, files, record = _run(config, folder, None, console)
        manifest = {
            "format_version": FORMAT_VERSION,
            "source": config.source,
            "options": _options(config),
            "n_buckets": config.buckets,
            "spans": [asdict(entry) for entry in entries],
            "files": files,
            "preparations": [record],
        }
        write_manifest(folder, manifest)
    return manifest


def _creating(config: PrepareConfig, output: Location) -> AbstractContextManager[Location]:
    if isinstance(output, Path):
        return creating(output, config.overwrite)
    if config.engine == "spark":
        return creating_in_place(output)
    return creating_remote(output, config.overwrite, config.local_temp_dir)


def _changing(config: PrepareConfig) -> AbstractContextManager[Change]:
    data = config.prepared
    if isinstance(data.path, Address):
        return changing_remote(data, data.path, config.local_temp_dir)
    return changing(data, data.path)


def _change(config: PrepareConfig, console: Console) -> dict[str, Any]:
    """Appends, forgets and retires, in this order, each made visible by one rename."""
    listed, manifest = None, dict[str, Any]()
    with _changing(config) as change:
        if config.forget_users is not None:
            listed = read_user_list(config.forget_users, change.known, "forget_users")
        if config.reads_log:
            manifest = _append(config, change, console)
        if listed is not None:
            manifest, forgotten = forget(change, listed)
            console.print(forgotten.describe(), highlight=False, soft_wrap=True, markup=False)
            line = "what was published before, and runs that are not named with --run_dir, may still hold these users"
            console.print(line, highlight=False, soft_wrap=True)
        if config.retire_before is not None:
            manifest, rows = retire(change, config.retire_before)
            console.print(f"retired {rows:,} rows before span {config.retire_before}", highlight=False, soft_wrap=True)
    return manifest


def _append(config: PrepareConfig, change: Change, console: Console) -> dict[str, Any]:
    known = change.known
    in_place = config.engine == "spark" and isinstance(known.path, Address)  # a task writes where the file stays
    entries, files, record = _run(config, known.path if in_place else change.folder, known, console)
    earlier = {name: entry for name, entry in known.manifest["files"].items() if name not in known.waiting_files}
    return change.commit(
        [*known.entries, *entries],
        in_place=in_place,
        files=earlier | files,
        preparations=[*known.manifest["preparations"], record],
    )


def _run(
    config: PrepareConfig, folder: Location, known: Dataset | None, console: Console
) -> tuple[list[SpanEntry], Files, dict[str, Any]]:
    with ProgressDisplay(console) as display, _engine(config, folder, display) as engine:
        try:
            preparation = Preparation(
                config,
                buckets=config.buckets,
                waits=known is not None or config.count_users == "so_far",
                known=known,
                engine=engine,
                display=display,
                folder=folder.resolve() if isinstance(folder, Path) else folder,
                memory=config.memory,
            )
            result = preparation.run()
        except duckdb.OutOfMemoryException as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"memory_limit: {config.memory_limit} is too little here ({reason})") from error
        except (duckdb.Error, pa.ArrowException) as error:
            raise ValueError(f"{config.input_name}: {' '.join(str(error).split())}") from error
    for warning in preparation.warnings:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True, markup=False)
    return result


@contextlib.contextmanager
def _engine(config: PrepareConfig, folder: Location, display: ProgressDisplay) -> Iterator[Engine]:
    parent = config.temp_dir or (folder if isinstance(folder, Path) else config.cache_folder)
    if config.engine == "spark":
        from dist_imsr.data.spark_engine import spark_engine  # with pyspark, which is an extra

        shared = config.temp_dir is not None or parent == folder
        with spark_engine(config.spark, display, config.memory, parent, shared) as engine:
            yield engine
        return
    assert isinstance(parent, Path)
    threads = config.threads or len(os.sched_getaffinity(0))
    with Database(parent, int(config.memory * DATABASE_SHARE), threads, config.time_zone) as database:
        yield DuckDBEngine(database, display, config.memory, threads)


def _options(config: PrepareConfig) -> dict[str, Any]:
    """The options that determine the data, for the manifest: those of spans and buckets, and others that are set."""
    always = ("min_interactions", "alpha", "spans", "buckets", "count_users")
    default = SourceConfig(source=config.source)
    names = [one.name for one in fields(SourceConfig) if one.name not in ("source", "input", *always)]
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
