"""Hyper-parameters, chosen by validation within one budget; test metrics play no part."""

import itertools
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

from dist_imsr.comparison.config import TuningConfig, Value
from dist_imsr.comparison.grid import Experiment, Grid
from dist_imsr.comparison.jobs import Job, Jobs
from dist_imsr.strategies import resources_of
from dist_imsr.training.config import TrainConfig


@dataclass
class Trial:
    """A run with candidate values.

    Args:
        experiment: whose values.
        number: 0 for the values as configured.
        values: by key; empty for those as configured.
        job: the run.
    """

    experiment: Experiment
    number: int
    values: dict[str, Value]
    job: Job

    @property
    def validation(self) -> float | None:
        """The mean over its spans of the early-stopping metric; None for a trial that did not finish."""
        found = [line["validation"] for line in self.job.lines()] if self.job.done else []
        measured = [value for value in found if value is not None]
        return math.fsum(measured) / len(measured) if measured else None


def combinations(keys: dict[str, list[Value]], seed: int) -> list[dict[str, Value]]:
    """All combinations of candidate values, in a random order.

    Args:
        keys: the candidates by key.
        seed: of the order.

    Returns:
        A value for each key, in each combination.
    """
    product = [dict(zip(keys, values, strict=True)) for values in itertools.product(*keys.values())]
    random.Random(seed).shuffle(product)
    return product


def trials_of(grid: Grid, jobs: Jobs, experiment: Experiment) -> list[Trial]:
    """The trials of an experiment: first its values as configured, then others.

    Args:
        grid: all cells.
        jobs: makes runs.
        experiment: whose values.

    Returns:
        At most ``tuning.budget``; none without at least two candidates, or without training that could be validated.

    Raises:
        ValueError: naming row and key, for an impossible value.
    """
    tuning: TuningConfig = grid.config.tuning
    keys = tuning.keys.get(experiment.row, {})
    if tuning.budget == 1 or not keys:
        return []
    configured = grid.resolved(experiment)
    candidates: list[tuple[dict[str, Value], TrainConfig]] = [({}, configured)]
    for values in combinations(keys, tuning.seed):
        config = grid.resolved(experiment, values)  # checks the whole list, whatever the budget
        if len(candidates) < tuning.budget and all(config != other for _, other in candidates):
            candidates.append((values, config))
    if len(candidates) == 1 or not resources_of(configured.strategy).trains:
        return []
    trials = []
    for number, (values, config) in enumerate(candidates):
        training = replace(config.training, spans=tuning.spans, export="none")
        path = experiment.path / f"trial={number}"
        job = jobs.job(
            path=Path("trials") / path,
            config=replace(config, training=training, seed=tuning.seed),
            arguments=[*grid.arguments(experiment, values), f"--training.spans={tuning.spans}"],
            dataset=grid.datasets[experiment.data],
            name=str(path),
        )
        trials.append(Trial(experiment, number, values, job))
    return trials


def best_trial(trials: list[Trial]) -> Trial | None:
    """The trial of an experiment with the highest validation, the earlier of equals; None if none finished."""
    scores = [(trial.validation, -trial.number) for trial in trials]
    best = max((score for score in scores if score[0] is not None), default=None)
    return None if best is None else trials[-best[1]]
