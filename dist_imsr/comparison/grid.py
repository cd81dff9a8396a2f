"""The cells of a comparison, and what is refused before the first of them is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from dist_imsr.checks import require
from dist_imsr.comparison.config import CompareConfig, Value
from dist_imsr.config import resolve
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.distributed.topology import Topology
from dist_imsr.strategies import build_strategy
from dist_imsr.training.config import TrainConfig

Result = TypeVar("Result")

_OWN = (
    *("config", "seed", "run_dir", "resume", "overwrite", "data.path", "model.base", "strategy.name", "eval.per_user"),
    "training.export",
)
# What makes a comparison fair; a row that differs in it would not be compared but another experiment.
_SHARED = (
    *("data.", "batch.", "eval.", "ranking.", "checkpoint.", "engine.deepspeed", "timeout_seconds"),
    *("training.metric", "training.patience", "training.validation_users", "training.spans", "model.score"),
    "training.incremental_epochs",
)


@dataclass(frozen=True)
class Entry:
    """A row with one base model on one data set, for all seeds.

    Args:
        data: the data set's name.
        base: the base model.
        row: the row's name.
    """

    data: str
    base: str
    row: str

    @property
    def place(self) -> Path:
        """Its folder below those of cells and trials."""
        return Path(self.data, self.base, self.row)


class Grid:
    """All cells of a comparison, each with a configuration that a run would not refuse.

    Args:
        config: the comparison's keys.
        device: where runs train.

    Attributes:
        entries: the cells' rows, in the order of data, bases and strategies; a cell is one of them with a seed.
        datasets: the prepared data by name.

    Raises:
        ValueError: naming the key at fault.
    """

    def __init__(self, config: CompareConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.datasets = {name: _told(f"data.{name}", self._open, name) for name in config.data}
        of_rows = [base for row in config.strategies.values() for base in row.bases or []]
        bases = list(dict.fromkeys([*config.bases, *of_rows]))  # those of some rows alone come last
        self.entries = [
            Entry(data, base, name)
            for data in config.data
            for base in bases
            for name, row in config.strategies.items()
            if base in (config.bases if row.bases is None else row.bases)
        ]
        for name, row in config.strategies.items():
            _check_keys(f"strategies.{name}.set", row.set, (*_OWN, *_SHARED))
            keys = [f"--{key}=" for key in config.tuning.keys.get(name, {})]
            _check_keys(f"tuning.keys.{name}", keys, (*_OWN, *_SHARED))
            require(row.bases is None or bool(row.bases), f"strategies.{name}.bases", row.bases, "at least one")
        for entry in self.entries:
            _told(f"strategies.{entry.row} with {entry.base} on {entry.data}", self._check, self.resolved(entry))
        anchored = [name for name in {config.reference, *config.tests} if config.strategies[name].bases is not None]
        require(not anchored, "reference and tests", anchored, "rows with the base models of all")

    def arguments(self, entry: Entry, values: dict[str, Value]) -> list[str]:
        """The arguments of launch/train.py but for seed and folder.

        Args:
            entry: which row.
            values: of tuned keys.

        Returns:
            ``--key=value`` each.
        """
        source, row = self.config.data[entry.data], self.config.strategies[entry.row]
        return [
            *(f"--config={source.config}", *source.set, *row.set),
            *(f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()),
            *(f"--data.path={source.path}", f"--model.base={entry.base}"),
            f"--strategy.name={row.strategy or entry.row}",
        ]

    def resolved(self, entry: Entry, values: dict[str, Value] | None = None) -> TrainConfig:
        """The configuration of a row's runs but for seed and folder.

        Args:
            entry: which row.
            values: of tuned keys.

        Returns:
            The whole tree of launch/train.py; nothing is exported unless the comparison keeps it.

        Raises:
            ValueError: naming row and key.
        """
        where = f"tuning.keys.{entry.row}" if values else f"strategies.{entry.row}"
        arguments = [*self.arguments(entry, values or {}), f"--run_dir={self.config.output}"]
        config = _told(f"{where} with {entry.base} on {entry.data}", resolve, TrainConfig, arguments)
        keep = config.training.export if self.config.keep else "none"
        return replace(config, overwrite=False, training=replace(config.training, export=keep))

    def _open(self, name: str) -> Dataset:
        source = self.config.data[name]
        require(source.config.is_file(), "config", str(source.config), "a YAML file for launch/train.py")
        _check_keys("set", source.set, _OWN)
        arguments = [f"--config={source.config}", *source.set, f"--data.path={source.path}", "--run_dir=."]
        config = _told(str(source.config), resolve, TrainConfig, arguments)
        require(
            self.config.top in config.eval.top, "eval.top", config.eval.top, f"numbers with top ({self.config.top})"
        )
        require(config.training.spans != 0, "training.spans", 0, "at least 1")
        dataset, tuning = Dataset(DataConfig(source.path, config.data.verify)), self.config.tuning
        _told("set", config.training.last, dataset.spans)
        if tuning.budget > 1 and tuning.keys:
            _told("tuning.spans", replace(config.training, spans=tuning.spans).last, dataset.spans)
        ranks = self.config.ranks
        Topology(0, ranks, ranks, self.device).buckets(dataset.buckets)
        return dataset

    def _check(self, config: TrainConfig) -> None:
        config.catalogue.optimizer_on(self.device)
        counts = build_strategy(config.strategy).counts
        if counts is not None:
            counts.check(Dataset(config.data))


def _check_keys(where: str, arguments: Sequence[str], refused: tuple[str, ...]) -> None:
    for argument in arguments:
        key, equals, _ = argument.removeprefix("--").partition("=")
        require(argument.startswith("--") and bool(equals), where, argument, "--key=value")
        within = key.startswith(tuple(one for one in refused if one.endswith("."))) or key in refused
        if within or any(one.startswith(f"{key}.") for one in refused):
            own = "the comparison sets it itself" if key in _OWN else "all rows share it; set it under data"
            raise ValueError(f"{where}: {key} cannot be set here: {own}")


def _told(where: str, act: Callable[..., Result], *arguments: Any) -> Result:
    """Calls something, and says of what it refuses where that stands."""
    try:
        return act(*arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
