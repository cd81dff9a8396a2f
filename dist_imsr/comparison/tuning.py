"""Hyper-parameters, chosen by validation within one budget; tests are never looked at."""

import itertools
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dist_imsr.comparison.config import TuningConfig, Value
from dist_imsr.comparison.grid import Entry, Grid
from dist_imsr.comparison.jobs import Job, Jobs
from dist_imsr.strategies import build_strategy


@dataclass
class Trial:
    """A run that tries values.

    Args:
        entry: of which row.
        number: 0 for the values as configured.
        values: by key; empty for those as configured.
        job: the run.
    """

    entry: Entry
    number: int
    values: dict[str, Value]
    job: Job

    @property
    def validation(self) -> float | None:
        """The mean over its spans of what stopped training early; None where it did not end well."""
        found = [line["validation"] for line in self.job.lines()] if self.job.done else []
        measured = [value for value in found if value is not None]
        return math.fsum(measured) / len(measured) if measured else None


def combinations(keys: dict[str, list[Value]], seed: int) -> list[dict[str, Value]]:
    """All combinations of values, in a random order.

    Args:
        keys: the values by key.
        seed: of the order.

    Returns:
        A value for each key, in each combination.
    """
    product = [dict(zip(keys, values, strict=True)) for values in itertools.product(*keys.values())]
    random.Random(seed).shuffle(product)
    return product


def trials_of(grid: Grid, jobs: Jobs, entry: Entry) -> list[Trial]:
    """The trials of a row on one data set with one base: first its values as configured, then others.

    Args:
        grid: all cells.
        jobs: makes runs.
        entry: which row.

    Returns:
        At most ``tuning.budget``; none where there is nothing to choose between, or nothing that validation could
        judge.

    Raises:
        ValueError: naming row and key, for an impossible value.
    """
    tuning: TuningConfig = grid.config.tuning
    keys, configured = tuning.keys.get(entry.row, {}), grid.resolved(entry)
    if tuning.budget == 1 or not keys:
        return []
    candidates: list[tuple[dict[str, Value], Any]] = [({}, configured)]
    for values in combinations(keys, tuning.seed):
        config = grid.resolved(entry, values)  # the whole list is checked, whatever the budget
        if len(candidates) < tuning.budget and all(config != other for _, other in candidates):
            candidates.append((values, config))
    if len(candidates) == 1 or not build_strategy(configured.strategy).trains(1):
        return []
    trials = []
    for number, (values, config) in enumerate(candidates):
        training = replace(config.training, spans=tuning.spans, export="none")
        config, place = replace(config, training=training, seed=tuning.seed), entry.place / f"trial={number}"
        arguments = [*grid.arguments(entry, values), f"--training.spans={tuning.spans}"]
        made = jobs.job(Path("trials") / place, config, arguments, grid.datasets[entry.data], str(place))
        trials.append(Trial(entry, number, values, made))
    return trials


def chosen(trials: list[Trial]) -> Trial | None:
    """The best trial.

    Args:
        trials: of one row on one data set with one base.

    Returns:
        That of the highest validation, the earlier of equals; None where none ended well.
    """
    judged = [(trial.validation, -trial.number) for trial in trials]
    best = max((one for one in judged if one[0] is not None), default=None)
    return None if best is None else trials[-best[1]]
