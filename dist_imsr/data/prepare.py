"""Prepares a raw log as a data set of spans, and adds later logs to it.

``dataset.json`` is the only file that is ever replaced, by one rename: before it, a data set is what it was, and files
that it does not name are leftovers, which the next command that writes removes.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import duckdb
import pyarrow as pa
from rich.console import Console

from dist_imsr.checks import require
from dist_imsr.config import plain, section_of
from dist_imsr.data.dataset import FORMAT_VERSION, MANIFEST, DataConfig, Dataset, SpanEntry, read_manifest
from dist_imsr.data.preparation import DATABASE_SHARE, Files, Preparation
from dist_imsr.data.sources import SourceConfig, input_files
from dist_imsr.data.workspace import Database, ProgressDisplay, parse_bytes, replace_folder
from dist_imsr.files import locked, sync_files, write_whole

_LEAST_MEMORY = 256 * 2**20
# What is said of each log anew; the other options are those of the data set.
_OF_A_LOG = ("input", "from_", "until", "span_edges")


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

    @property
    def memory(self) -> int:
        """The memory limit in bytes."""
        return parse_bytes(self.memory_limit) or 0


@dataclass(kw_only=True)
class PrepareConfig(MachineOptions, SourceConfig):
    """Prepares a raw log of interactions: cuts it into spans of time and buckets of users, out of core.

    Args:
        source: the format: taobao, amazon, movielens, recbole, tmall, yelp, gowalla, complete-journey, csv or parquet;
            or drift, which generates interactions with planted truth. With append, that of the data set.
        output: the folder to write; it appears only when complete.
        overwrite: replace the data set that an earlier run wrote there.
        append: in the place of output, the prepared folder to which the input is added as further spans. Source,
            columns and filters are those of the data set. A log that covers several spans adds several.
        late: rows before the end of the last span of append: reject them (too many refuse the log, as for any bad
            rows), or let those that the data do not hold yet enter the next span (into_next).
        count_users: which rows count for min_interactions: those of the whole_log, as in the paper, or only those
            so_far, as in an append: then a user's rows wait until there are enough, and enter the span of the row that
            completes them.
    """

    source: str = ""
    output: Path | None = None
    overwrite: bool = False
    append: Path | None = None
    late: Literal["reject", "into_next"] = "reject"
    count_users: Literal["whole_log", "so_far"] = "whole_log"

    def __post_init__(self) -> None:
        if self.append is None:
            require(self.output is not None, "output", None, "a folder to write, or --append FOLDER")
            require(self.late == "reject", "late", self.late, "reject, if nothing is appended")
        else:
            require(self.output is None, "output", str(self.output), "none with append")
            require(not self.overwrite, "overwrite", True, "false with append")
            self._inherit(read_manifest(self.append))
        require(bool(self.source), "source", self.source, "the format of the input")
        SourceConfig.__post_init__(self)
        MachineOptions.__post_init__(self)
        if self.append is not None:
            self._refuse_options_of_the_whole()

    @property
    def late_before(self) -> int | None:
        """As in `RowOptions`: the end of the last span, if rows before it are rejected."""
        if self.append is None or self.late != "reject":
            return None
        return int(read_manifest(self.append)["spans"][-1]["end_second"])

    def _inherit(self, manifest: dict[str, Any]) -> None:
        """Takes over the options of the data set, which the command line may repeat, but not change."""
        options = manifest["options"] | {"source": manifest["source"]}
        for field in fields(self):
            if field.name in _OF_A_LOG or (field.name not in options and field.name not in _SOURCE_FIELDS):
                continue
            default = field.default if field.default_factory is MISSING else field.default_factory()
            stored, own = options.get(field.name, default), getattr(self, field.name)
            if isinstance(stored, dict):
                stored = section_of(field.type, stored)  # type: ignore[arg-type]
            if field.name == "max_bad_fraction" and own != default:
                continue
            if own not in (default, stored):
                raise ValueError(f"{field.name}: {own!r} is not that of {self.append}, {stored!r}: leave it out")
            setattr(self, field.name, stored)

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


_SOURCE_FIELDS = {field.name for field in fields(SourceConfig)}


def prepare(config: PrepareConfig, console: Console) -> dict[str, Any]:
    """Writes the prepared folder of design.md section 6, or adds spans to it.

    Args:
        config: the input, the options and the output.
        console: for the progress.

    Returns:
        The manifest, as written to ``dataset.json``; the last of its ``preparations`` is this one's record.

    Raises:
        ValueError: naming key, file or row, if the input cannot be read, has too many bad rows, has no user left after
            filtering or cannot be cut into spans, if the output may not be written, if the memory limit is too low, or
            if another process appends; nothing is changed then.
    """
    input_files(config)  # what is missing is known before anything starts
    if config.append is not None:
        with changing(config.append) as known:
            return _append(config, known, console)
    assert config.output is not None
    with replace_folder(config.output, MANIFEST, config.overwrite) as folder:
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
        write_manifest_file(folder, manifest)
    return manifest


def _append(config: PrepareConfig, known: Dataset, console: Console) -> dict[str, Any]:
    folder = known.path
    entries, files, record = _run(config, folder, known, console)
    sync_files([folder / name for entry in entries for name in known.files_of(entry)])
    sync_files([folder / name for name in files])
    earlier = {name: entry for name, entry in known.manifest["files"].items() if name not in known.waiting_files}
    manifest = known.manifest | {
        "spans": [*known.manifest["spans"], *map(asdict, entries)],
        "files": earlier | files,
        "preparations": [*known.manifest["preparations"], record],
    }
    write_manifest_file(folder, manifest)
    return manifest


def _run(
    config: PrepareConfig, folder: Path, known: Dataset | None, console: Console
) -> tuple[list[SpanEntry], Files, dict[str, Any]]:
    threads = config.threads or len(os.sched_getaffinity(0))
    with (
        ProgressDisplay(console) as display,
        Database(config.temp_dir or folder, int(config.memory * DATABASE_SHARE), threads, config.time_zone) as database,
    ):
        try:
            preparation = Preparation(
                config,
                buckets=config.buckets,
                waits=known is not None or config.count_users == "so_far",
                known=known,
                database=database,
                display=display,
                folder=folder,
                memory=config.memory,
                threads=threads,
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
def changing(folder: Path) -> Iterator[Dataset]:
    """Locks a data set, and removes what an interrupted change left in its folder, before and after.

    Args:
        folder: of the data set.

    Yields:
        The data set as it is.

    Raises:
        ValueError: if another process is changing it.
    """
    with locked(folder / ".lock", f"append: another process is changing {folder}; wait for it"):
        _remove_leftovers(folder)
        try:
            yield Dataset(DataConfig(folder))
        finally:
            _remove_leftovers(folder)


def write_manifest_file(folder: Path, manifest: dict[str, Any]) -> None:
    """Replaces ``dataset.json`` by one rename."""
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _remove_leftovers(folder: Path) -> None:
    """Removes the files that ``dataset.json`` does not name, in the places of a data set's files."""
    manifest = read_manifest(folder)
    names = {f"span={entry['name']}" for entry in manifest["spans"]}
    named = {folder / name for name in names}
    named |= {folder / table / f"{name}.parquet" for name in names for table in ("users", "items")}
    named |= {folder / name for name in manifest["files"]}
    for pattern in ("span=*", "users/*", "items/*", "waiting/*", "rejected/*", "duckdb-*"):
        for path in set(folder.glob(pattern)) - named:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _options(config: PrepareConfig) -> dict[str, Any]:
    """The options that determine the data, for the manifest: those of spans and buckets, and others that are set."""
    always = ("min_interactions", "alpha", "spans", "buckets", "count_users")
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
