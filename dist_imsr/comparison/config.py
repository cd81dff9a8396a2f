"""The keys of a comparison; its YAML files are configs/compare_*.yaml."""

from dataclasses import dataclass, field
from pathlib import Path

from dist_imsr.addresses import Location
from dist_imsr.checks import require
from dist_imsr.comparison.document import replace_part

Value = bool | int | float | str


@dataclass
class Source:
    """A data set, and the settings that all runs on it share.

    Args:
        config: a YAML file for launch/train.py.
        path: the folder that launch/prepare.py wrote, or its address.
        set: further arguments of launch/train.py, as ``--key=value``.
    """

    config: Path
    path: Location
    set: list[str] = field(default_factory=list)


@dataclass
class Row:
    """A row of the tables.

    Args:
        strategy: strategy.name; the row's own name by default.
        bases: the base models that it is trained with; those of all rows by default.
        set: the row's own arguments of launch/train.py, as ``--key=value``. Keys that all rows share (data, batches,
            loss, early stopping, scores, ranking and tests) cannot be set here.
        settings: whether the row is about settings: it may have its own values of keys that all rows share otherwise,
            but for those of data and tests.
        baseline: instead of a strategy, a baseline of launch/baselines.py, of which ``set`` has arguments: one run for
            each data set, shown with the base ``-``, that stands for all seeds.
    """

    strategy: str | None = None
    bases: list[str] | None = None
    set: list[str] = field(default_factory=list)
    settings: bool = False
    baseline: str | None = None

    def __post_init__(self) -> None:
        for key in ("strategy", "bases"):
            value = getattr(self, key)
            require(self.baseline is None or value is None, f"strategies: {key}", value, "none in a row of a baseline")


@dataclass
class TuningConfig:
    """How hyper-parameters are chosen: by validation alone, with the same budget for all rows.

    Args:
        budget: trials for each data set, base and row, of which the first has the configured values; 1 tunes nothing.
        spans: how many spans after pre-training a trial trains.
        seed: of the trials, and of the order of their values.
        keys: candidate values by row and key: all combinations of a row's, in a random order, up to the budget.
    """

    budget: int = 1
    spans: int = 2
    seed: int = 0
    keys: dict[str, dict[str, list[Value]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.budget >= 1, "tuning.budget", self.budget, "at least 1")
        require(self.spans >= 1, "tuning.spans", self.spans, "at least 1")
        require(self.seed >= 0, "tuning.seed", self.seed, "at least 0")
        for row, keys in self.keys.items():
            for key, values in keys.items():
                require(bool(values), f"tuning.keys.{row}.{key}", values, "at least one value")


@dataclass
class CompareConfig:
    """Compares strategies over base models, seeds and data sets; a stopped comparison continues.

    Args:
        output: the comparison's folder.
        data: the data sets by name.
        strategies: the rows of the tables by name.
        bases: the base models.
        seeds: every row, base and data set has one run for each seed.
        reference: the row that RI, the relative improvement, is relative to.
        tests: the rows that every other one is tested against for significance.
        top: N of the tables' HR@N and NDCG@N; eval.top must hold it.
        tuning: how hyper-parameters are chosen.
        cores: processes at once, of one thread each.
        ranks: processes of each run.
        keep: keep checkpoints/ of finished cells and trials, and export spans/ of cells as training.export says.
        document: a Markdown file whose lines between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` are replaced by the
            tables; NAME is that of the comparison's folder. None for no file.
        table_only: train nothing; write the tables again from the finished runs.
        imports: modules that register strategies or base models, imported here and in all runs; ``--import NAME ...``
            on the command line.
    """

    output: Path
    data: dict[str, Source]
    strategies: dict[str, Row]
    bases: list[str] = field(default_factory=lambda: ["comirec_dr"])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    reference: str = "fine_tuning"
    tests: list[str] = field(default_factory=lambda: ["fine_tuning"])
    top: int = 20
    tuning: TuningConfig = field(default_factory=TuningConfig)
    cores: int = 1
    ranks: int = 1
    keep: bool = False
    document: Path | None = None
    table_only: bool = False
    imports: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key in ("data", "strategies", "bases", "seeds"):
            value = getattr(self, key)
            require(bool(value), key, value, "at least one")
            require(len(set(value)) == len(value), key, value, "different ones")
        require(min(self.seeds) >= 0, "seeds", self.seeds, "at least 0")
        require(self.ranks >= 1, "ranks", self.ranks, "at least 1")
        if self.document is not None:
            replace_part(self.document, self.output.name, None)
        require(self.cores >= self.ranks, "cores", self.cores, f"at least ranks ({self.ranks})")
        known = f"one of strategies: {', '.join(self.strategies)}"
        for key, names in (("reference", [self.reference]), ("tests", self.tests), ("tuning.keys", self.tuning.keys)):
            for name in names:
                require(name in self.strategies, key, name, known)
        for name in self.tuning.keys:
            require(self.strategies[name].baseline is None, "tuning.keys", name, "no baseline: it chooses by itself")
        for key in ("data", "strategies"):
            for name in getattr(self, key):  # they become folders
                plain = name not in ("", ".", "..") and not set(name) & set("/\\=")
                require(plain, key, name, "a name without slashes and '='")
