"""What a report is made from: the folders of runs, and that of a comparison."""

import contextlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dist_imsr.config import import_modules
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.evaluation.exported import read_parts
from dist_imsr.keys import is_read, rules_of
from dist_imsr.registry import extended
from dist_imsr.report.config import ReportConfig
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.identity import by_key

NO_BASE = "-"


class Missing(Exception):
    """A section cannot be made; the text says what it lacks, and how to get it."""


@dataclass(frozen=True)
class Group:
    """What is shown in one figure: a data set and a base model.

    Args:
        data: the data set's name.
        base: the base model.
    """

    data: str
    base: str

    @property
    def title(self) -> str:
        """For headings."""
        return f"{self.data}, {self.base}"


class Run:
    """The folder of one run, which may still be going on.

    Args:
        folder: written by launch/train.py.
        label: what the run is shown as; its strategy's name by default.
        data: the name of its data set; that of the folder of the data by default.

    Raises:
        ValueError: naming the file that is missing or unreadable.
    """

    def __init__(self, folder: Path, label: str | None = None, data: str | None = None) -> None:
        self.folder = folder
        path = folder / "config.yaml"
        if not path.is_file():
            raise ValueError(f"runs: {folder} holds no config.yaml: name the folder of a run")
        try:
            self.settings: dict[str, Any] = yaml.load(path.read_text(), yaml.CSafeLoader)  # a comparison has hundreds
            self.strategy: str = self.settings["strategy"]["name"]
            self.base: str = self.settings["model"]["base"]
            self.seed = int(self.settings["seed"])
            self.data = DataConfig.of_run(self.settings["data"])
            self.tops: list[int] = self.settings["eval"]["top"]
            with contextlib.suppress(ValueError):  # a report may be made where a user's own modules are not
                import_modules(self.settings.get("imports") or [])
        except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no configuration of a run ({' '.join(str(error).split())})") from error
        self.label = label or self.strategy
        self.group = Group(data or self.data.path.name, self.base)

    @property
    def columns(self) -> dict[str, str]:
        """The columns of a table that tell the run's rows from others: data, base and label."""
        return {"data": self.group.data, "base": self.base, "label": self.label}

    @cached_property
    def values(self) -> dict[str, Any]:
        """The settings by key, with dots."""
        return by_key(self.settings)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that make another run when they change, but for the seed."""
        tree, own = extended(TrainConfig), (f"strategy.{self.strategy}.", f"model.{self.base}.")
        return {
            key: value
            for key, value in self.values.items()
            if key.startswith(own)
            or (key != "seed" and rules_of(tree, key).resume != "free" and is_read(tree, key, self.values))
        }

    @property
    def tests(self) -> dict[str, Any]:
        """The settings that all rows of a comparison must have in common, but for the folder of the data."""
        tree = extended(TrainConfig)
        return {
            key: value
            for key, value in self.values.items()
            if rules_of(tree, key).compare == "tests" and not key.startswith("data.") and key != "eval.top"
        }

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """Those of metrics.jsonl."""
        return _lines(self.folder / "metrics.jsonl")

    @cached_property
    def phases(self) -> list[dict[str, Any]]:
        """Those of phases.jsonl."""
        return _lines(self.folder / "phases.jsonl")

    @cached_property
    def baselines(self) -> list[dict[str, Any]]:
        """Those of baselines.jsonl."""
        return _lines(self.folder / "baselines.jsonl")

    @cached_property
    def environments(self) -> list[dict[str, Any]]:
        """Those of environment.jsonl: one for each start."""
        return _lines(self.folder / "environment.jsonl")

    @cached_property
    def dataset(self) -> Dataset:
        """The prepared data.

        Raises:
            Missing: if the folder is gone or holds other data.
        """
        try:
            return Dataset(self.data)
        except ValueError as error:
            raise Missing(f"the data of {self.folder} cannot be read: {error}") from error

    def users_file(self, test_span: int) -> Path:
        """The file with the metrics of each user in a test; there is none without ``--eval.per_user``."""
        return self.folder / "users" / f"span={test_span}.parquet"

    @cached_property
    def exported(self) -> list[int]:
        """The spans whose interests are there, ascending."""
        names = (path.name[5:] for path in self.folder.glob("spans/span=*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def parts(self, span: int, name: str) -> pa.Table:
        """An exported table of all ranks: ``interests``, ``items`` or ``detections``.

        Raises:
            Missing: if it cannot be read.
        """
        remedy = "make the report where the data are as the run read them"
        try:
            return pa.Table.from_batches(
                [
                    batch.replace_schema_metadata(None)
                    for batch in read_parts(self.folder, span, name, self.dataset, remedy)
                ]
            )
        except ValueError as error:
            raise Missing(str(error)) from error

    def imsr(self, *keys: str) -> Any:
        """A setting of the strategy imsr; None for other strategies."""
        value: Any = self.settings["strategy"]["imsr"] if self.strategy == "imsr" else None
        for key in keys:
            value = None if value is None else value[key]
        return value


class Sources:
    """All that the sections are computed from.

    Args:
        config: the report's keys.

    Raises:
        ValueError: naming the key or the file at fault.
    """

    def __init__(self, config: ReportConfig) -> None:
        self.config = config
        self.notes = list[str]()
        """What the current section should say about what it lacks."""
        self.comparison = None if config.compare is None else Comparison(config.compare)
        own = [Run(folder) for folder in config.runs]
        _name_data(own)
        cells = self.comparison.runs if self.comparison else []
        _label(own, {(cell.group, cell.label) for cell in cells})
        self.runs = own + cells
        self.top = self._top()
        known = list(dict.fromkeys(record["label"] for record in self.records))
        if config.reference is not None and config.reference not in known:
            raise ValueError(f"reference: {config.reference} is none of {', '.join(known)}")
        default = "fine_tuning" if self.comparison is None else self.comparison.config["reference"]
        self.reference = config.reference or (default if default in known else None)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """A record for each tested span of each run and baseline: the line of metrics.jsonl, with label and data."""
        found = []
        for run in self.runs:
            found += [line | run.columns | {"seed": run.seed, "is_baseline": False} for line in run.lines]
        if self.comparison is not None:
            found += self.comparison.baselines
        for run in self.runs:  # a baseline depends on the data alone
            place = {"data": run.group.data, "base": NO_BASE, "seed": None, "is_baseline": True}
            known = {(one["label"], one["data"], one["test_span"]) for one in found}
            new = [one for one in run.baselines if (one["strategy"], run.group.data, one["test_span"]) not in known]
            found += [line | place | {"label": line["strategy"]} for line in new]
        return found

    @cached_property
    def groups(self) -> list[Group]:
        """Data sets and base models, in the order of the sources."""
        return list(dict.fromkeys(run.group for run in self.runs))

    def labels(self, group: Group) -> list[str]:
        """The labels of a group's runs."""
        return list(dict.fromkeys(run.label for run in self.runs if run.group == group))

    def records_of(self, group: Group) -> list[dict[str, Any]]:
        """The records of a group, baselines of its data included."""
        own = (group.base, NO_BASE)
        return [record for record in self.records if record["data"] == group.data and record["base"] in own]

    def shared_spans(self, group: Group) -> list[int]:
        """The test spans that all rows of a group have, ascending: rows are compared over these."""
        spans = defaultdict(set)
        for record in self.records_of(group):
            spans[record["label"]].add(record["test_span"])
        shared = sorted(set.intersection(*spans.values())) if spans else []
        every = set[int]().union(*spans.values())
        if len(shared) < len(every):
            listed = ", ".join(map(str, shared)) or "none"
            self.note(f"rows of {group.title} are compared over the spans that all were tested on: {listed}")
        return shared

    def shared_records(self, group: Group) -> list[dict[str, Any]]:
        """The records of the tests that all rows of a group have."""
        spans = self.shared_spans(group)
        return [record for record in self.records_of(group) if record["test_span"] in spans]

    def same_tests(self, group: Group, label: str) -> bool:
        """Whether the runs of a label were tested in the same way as those of the reference."""
        tests = [run.tests for run in self.runs if run.group == group and run.label in (label, self.reference)]
        if any(other != tests[0] for other in tests):
            self.note(f"{label} and {self.reference} were tested in different ways on {group.title}: not compared")
            return False
        return True

    def note(self, reason: object) -> None:
        """Keeps a remark for the section that is being made."""
        if str(reason) not in self.notes:
            self.notes.append(str(reason))

    def first_runs(self, needed: str = "") -> Iterator[Run]:
        """One run of each label and group: that of the smallest seed, with exports if some are needed."""
        by_label = defaultdict(list)
        for run in self.runs:
            if not needed or run.exported:
                by_label[run.group, run.label].append(run)
        for runs in by_label.values():
            yield min(runs, key=lambda run: run.seed)

    def _top(self) -> int:
        tests = [set(run.tops) for run in self.runs]
        shared = set.intersection(*tests) if tests else set[int]()
        if self.config.top is not None:
            if self.config.top not in shared:
                raise ValueError(f"top: {self.config.top} is not in eval.top of all runs; all have {sorted(shared)}")
            return self.config.top
        if self.comparison is not None and (self.comparison.config["top"] in shared or not tests):
            return int(self.comparison.config["top"])
        if not shared:
            raise ValueError("runs: they have no N in common in eval.top; make a report of each kind")
        return min(shared, key=lambda top: (top != 20, top))


class Comparison:
    """The folder of a comparison.

    Args:
        folder: written by launch/compare.py.

    Raises:
        ValueError: naming the file that is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("config.yaml", "results.parquet", "summary.parquet"):
            if not (folder / name).is_file():
                raise ValueError(f"compare: {folder} holds no {name}: name the folder of a comparison with tables")
        self.config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
        self.results: list[dict[str, Any]] = pq.read_table(folder / "results.parquet").to_pylist()
        self.bases: list[str] = self.config["bases"]
        self.summary: list[dict[str, Any]] = pq.read_table(folder / "summary.parquet").to_pylist()
        unknown = {row["strategy"] for row in self.summary} - self.config["strategies"].keys()
        if unknown:
            raise ValueError(
                f"compare: {folder} has tables of other rows than its config.yaml: write them with table_only"
            )

    @cached_property
    def runs(self) -> list[Run]:
        """The finished cells that are runs."""
        cells = {
            (row["data"], row["base"], row["row"], row["seed"]): None for row in self.results if row["status"] == "done"
        }
        return [
            Run(self.folder / "cells" / data / base / row / f"seed={seed}", label=row, data=data)
            for data, base, row, seed in cells
            if base != NO_BASE
        ]

    @cached_property
    def baselines(self) -> list[dict[str, Any]]:
        """The records of finished cells that are baselines."""
        rows = [row for row in self.results if row["base"] == NO_BASE and row["status"] == "done"]
        place = {"seed": None, "is_baseline": True}
        return [row | place | {"label": row["row"]} for row in rows]

    def row_settings(self, row: str) -> dict[str, str]:
        """The keys that a row sets, without dashes, with their values as they are written."""
        pairs = (argument.removeprefix("--").partition("=") for argument in self.config["strategies"][row]["set"])
        return {key: value for key, _, value in pairs}


def _name_data(runs: Sequence[Run]) -> None:
    """Names data sets by more of their paths where two folders have one name."""
    paths = defaultdict(set)
    for run in runs:
        paths[run.group.data].add(str(run.data.path))
    for run in runs:
        if len(paths[run.data.path.name]) > 1:
            run.group = Group(str(run.data.path), run.base)


def _label(runs: Sequence[Run], taken: Collection[tuple[Group, str]]) -> None:
    """Labels runs by their folders where several of one strategy and group differ in more than their seed.

    Args:
        runs: labelled by their strategies.
        taken: labels of other sources.
    """
    by_strategy = defaultdict(list)
    for run in runs:
        by_strategy[run.group, run.strategy].append(run)
    for same in by_strategy.values():
        identities = [run.identity for run in same]
        seeds = {run.seed for run in same}
        if any(other != identities[0] for other in identities) or len(seeds) < len(same):
            for run in same:
                run.label = run.folder.name
    for run in runs:
        if (run.group, run.label) in taken:
            run.label = run.folder.name
    labels = [(run.group, run.label, run.seed) for run in runs]
    for run in runs:
        if labels.count((run.group, run.label, run.seed)) > 1 or (run.group, run.label) in taken:
            run.label = str(run.folder)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines; a last one that is being written does not count."""
    if not path.is_file():
        return []
    *whole, _ = path.read_text().split("\n")
    try:
        return [json.loads(line) for line in whole if line]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): make the report without this run") from error
