"""The cells of a comparison; impossible ones are refused before the first is trained."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from dist_imsr.baselines.config import BaselinesConfig
from dist_imsr.checks import require
from dist_imsr.comparison.config import CompareConfig, Row, Value
from dist_imsr.config import plain, resolve
from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.topology import Topology
from dist_imsr.keys import Compare, keys_of, rules_of
from dist_imsr.registry import extended
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.learnable import check_rows

Result = TypeVar("Result")
NO_BASE = "-"
"""Stands for the base model of a baseline."""

_REASONS: dict[Compare, str] = {
    "grid": "the comparison sets it itself",
    "tests": "all rows have the same tests; set it under data",
    # With its own value, a row would be another experiment.
    "shared": "all rows share it; set it under data, or compare settings with settings: true in the row",
}


@dataclass(frozen=True)
class Experiment:
    """A row of the tables with one base model on one data set, for all seeds.

    Args:
        data: the data set's name.
        base: the base model; `NO_BASE` for a baseline.
        row: the row's name.
    """

    data: str
    base: str
    row: str

    @property
    def path(self) -> Path:
        """Its folder below those of cells and trials."""
        return Path(self.data, self.base, self.row)


class Grid:
    """All cells of a comparison, each with a configuration that a run would accept.

    Args:
        config: the comparison's keys.
        device: where runs train.

    Attributes:
        experiments: in the order of data, bases and strategies; a cell is one of them with a seed.
        datasets: the prepared data by name.

    Raises:
        ValueError: naming the key at fault.
    """

    def __init__(self, config: CompareConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self._sources = dict[str, TrainConfig]()
        self.datasets = {name: _within(f"data.{name}", self._open, name) for name in config.data}
        own = [base for row in config.strategies.values() for base in row.bases or []]
        bases = list(dict.fromkeys([*config.bases, *own]))  # bases of single rows come last
        self.experiments = [
            Experiment(data, base, name)
            for data in config.data
            for base in [*bases, NO_BASE]
            for name, row in config.strategies.items()
            if base in self._bases(row)
        ]
        for name, row in config.strategies.items():
            refused: list[Compare] = ["grid", "tests"] if row.settings else ["grid", "tests", "shared"]
            tree: type = TrainConfig if row.baseline is None else BaselinesConfig
            _check_keys(f"strategies.{name}.set", row.set, refused, tree)
            keys = [f"--{key}=" for key in config.tuning.keys.get(name, {})]
            _check_keys(f"tuning.keys.{name}", keys, refused)
            require(row.bases is None or bool(row.bases), f"strategies.{name}.bases", row.bases, "at least one")
        for experiment in self.experiments:
            where = f"strategies.{experiment.row} with {experiment.base} on {experiment.data}"
            if experiment.base == NO_BASE:
                _within(where, self.baseline(experiment).check, self.datasets[experiment.data], 1)
            else:
                _within(where, self._check, self.resolved(experiment))
        anchored = [name for name in {config.reference, *config.tests} if config.strategies[name].bases is not None]
        require(not anchored, "reference and tests", anchored, "rows with the base models of all")

    def arguments(self, experiment: Experiment, values: dict[str, Value]) -> list[str]:
        """The arguments of launch/train.py but for seed and folder.

        Args:
            experiment: whose runs.
            values: of tuned keys.

        Returns:
            ``--key=value`` each.
        """
        source, row = self.config.data[experiment.data], self.config.strategies[experiment.row]
        tuned = (f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items())
        return [
            f"--config={source.config}",
            *(f"--import={name}" for name in self.config.imports),
            *source.set,
            *row.set,
            *tuned,
            f"--data.path={source.path}",
            f"--model.base={experiment.base}",
            f"--strategy.name={row.strategy or experiment.row}",
        ]

    def baseline_arguments(self, experiment: Experiment) -> list[str]:
        """The arguments of launch/baselines.py for a baseline, but for output and users.

        Args:
            experiment: of a baseline.

        Returns:
            ``--key=value`` each.
        """
        row, dataset = self.config.strategies[experiment.row], self.datasets[experiment.data]
        source = self._sources[experiment.data]
        tests = plain(asdict(replace(source.eval, beyond=False, per_user=False)))  # it makes no lists, and has a key
        return [
            *row.set,
            *(f"--data.{key}={value}" for key, value in vars(source.data).items() if value and key != "verify"),
            f"--baselines={row.baseline}",
            f"--spans={min(source.training.last(dataset.spans), dataset.spans - 2)}",
            f"--eval={json.dumps(tests)}",
        ]

    def baseline(self, experiment: Experiment) -> BaselinesConfig:
        """The configuration of a baseline but for output and users.

        Args:
            experiment: of a baseline.

        Raises:
            ValueError: naming row and key.
        """
        where = f"strategies.{experiment.row} with {experiment.base} on {experiment.data}"
        return _within(where, resolve, BaselinesConfig, self.baseline_arguments(experiment))

    def resolved(self, experiment: Experiment, values: dict[str, Value] | None = None) -> TrainConfig:
        """The configuration of an experiment's runs but for seed and folder.

        Args:
            experiment: whose runs.
            values: of tuned keys.

        Returns:
            The whole tree of launch/train.py; nothing is exported unless the comparison keeps it.

        Raises:
            ValueError: naming row and key.
        """
        where = f"tuning.keys.{experiment.row}" if values else f"strategies.{experiment.row}"
        arguments = [*self.arguments(experiment, values or {}), f"--run_dir={self.config.output}"]
        where = f"{where} with {experiment.base} on {experiment.data}"
        config = _within(where, resolve, TrainConfig, arguments)
        export = config.training.export if self.config.keep else "none"
        return replace(config, overwrite=False, baselines=False, training=replace(config.training, export=export))

    def _open(self, name: str) -> Dataset:
        source, top = self.config.data[name], self.config.top
        require(source.config.is_file(), "config", str(source.config), "a YAML file for launch/train.py")
        _check_keys("set", source.set, ("grid",))
        arguments = [f"--config={source.config}", *source.set, f"--data.path={source.path}", "--run_dir=."]
        self._sources[name] = config = _within(str(source.config), resolve, TrainConfig, arguments)
        require(top in config.eval.top, "eval.top", config.eval.top, f"numbers with top ({top})")
        require(config.training.spans != 0, "training.spans", 0, "at least 1")
        dataset, tuning = Dataset(config.data), self.config.tuning
        _within("set", config.training.last, dataset.spans)
        if tuning.budget > 1 and tuning.keys:
            _within("tuning.spans", replace(config.training, spans=tuning.spans).last, dataset.spans)
        ranks = self.config.ranks
        Topology(0, ranks, ranks, self.device).buckets(dataset.buckets)
        return dataset

    def _bases(self, row: Row) -> list[str]:
        if row.baseline is not None:
            return [NO_BASE]
        return self.config.bases if row.bases is None else row.bases

    def _check(self, config: TrainConfig) -> None:
        config.catalogue.check_device(self.device)
        dataset = Dataset(config.data)
        check_rows(dataset, config, range(config.training.last(dataset.spans) + 1))


def _check_keys(where: str, arguments: Sequence[str], refused: Sequence[Compare], kind: type = TrainConfig) -> None:
    """Refuses arguments that would make a comparison unfair, as the metadata of their keys say."""
    tree: type = extended(kind)
    for argument in arguments:
        key, equals, _ = argument.removeprefix("--").partition("=")
        require(argument.startswith("--") and bool(equals), where, argument, "--key=value")
        key = key.removesuffix("+")  # appends to a list
        within = [name for name in keys_of(tree) if name.startswith(f"{key}.")] or [key]
        rules = [rules_of(tree, name).compare for name in within]
        if key in ("config", "import"):
            rules = ["grid"]
        found = next((rule for rule in rules if rule in refused), None)
        if found:
            raise ValueError(f"{where}: {key} cannot be set here: {_REASONS[found]}")


def _within(where: str, act: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function, and adds to its refusals the key that they belong to."""
    try:
        return act(*arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
