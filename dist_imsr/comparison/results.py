"""The numbers of finished cells: a record for each cell and span, and a summary of each row of the tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dist_imsr.comparison.config import CompareConfig
from dist_imsr.comparison.grid import NO_BASE, Experiment
from dist_imsr.comparison.jobs import Job
from dist_imsr.comparison.statistics import METRICS, deviation, holm, improvement, mean, over_seeds, over_users


@dataclass(frozen=True)
class Cells:
    """The cells of one experiment.

    Args:
        experiment: row, base model and data set.
        jobs: its runs by seed.
        top: N.
    """

    experiment: Experiment
    jobs: dict[int, Job]
    top: int

    @property
    def runs(self) -> dict[int | None, Job]:
        """Its different runs: one for each seed; that of a baseline has none."""
        return {None: next(iter(self.jobs.values()))} if self.experiment.base == NO_BASE else dict(self.jobs.items())

    @property
    def missing(self) -> list[str]:
        """A reason for each run without numbers."""
        states = {seed: job.state for seed, job in self.runs.items() if not job.done}
        return [
            f"{'' if seed is None else f'seed {seed} '}"
            f"{f'failed: {state.reason}' if state.status == 'failed' else 'has not been run'}"
            for seed, state in states.items()
        ]

    @cached_property
    def means(self) -> dict[str, dict[int, float]]:
        """The mean over tested spans by metric and seed.

        ``unseen`` is HR among unseen items and ``validation`` what early stopping reads, both in per cent as HR and
        NDCG are; ``interests`` is the number of a user's interests after the last span.
        """
        lines = {seed: job.lines() for seed, job in self.jobs.items() if job.done}
        keys = {name: f"{name}@{self.top}" for name in METRICS}
        keys |= {"unseen": f"hr@{self.top}_unseen", "validation": "validation"}
        interests = {seed: each[-1].get("interests_mean") for seed, each in lines.items() if each}
        grown = {"interests": {seed: found for seed, found in interests.items() if found is not None}}
        return grown | {
            name: {
                seed: 100 * found
                for seed, each in lines.items()
                if (found := mean([line[key] for line in each if line.get(key) is not None])) is not None
            }
            for name, key in keys.items()
        }

    def users(self, seeds: Sequence[int]) -> list[Path]:
        """The files of users' own metrics, one for each of these seeds' runs and tested spans."""
        return [path for seed in seeds for path in self.jobs[seed].users()]

    def shares_pretraining(self, other: "Cells") -> bool:
        """Whether both begin from the same pre-trained models; true for two base models, which cannot."""
        needs = ([job.needs for job in cells.jobs.values()] for cells in (self, other))
        other_base = self.experiment.base != other.experiment.base
        return other_base or all(own is its for own, its in zip(*needs, strict=True))

    def seconds(self) -> dict[int, float]:
        """Seconds of training by span, means over seeds."""
        spans: dict[int, list[float]] = {}
        for job in self.runs.values():
            for line in job.lines() if job.done else []:
                spans.setdefault(line["span"], []).append(line["train_seconds"])
        return {span: sum(values) / len(values) for span, values in spans.items()}


def summary_records(config: CompareConfig, all_cells: Sequence[Cells]) -> list[dict[str, Any]]:
    """A record of each row of the tables.

    A row of a base model that the other one does not have, or of a baseline, is compared with that one with the first
    of ``bases``. A comparison of two rows takes the seeds that both have.

    Args:
        config: the comparison's keys.
        all_cells: of each experiment.

    Returns:
        Plain values; None for what cannot be computed.
    """
    by_experiment = {cells.experiment: cells for cells in all_cells}

    def counterpart(experiment: Experiment, row: str) -> Cells:
        bases = (experiment.base, NO_BASE, config.bases[0])
        found = (by_experiment.get(Experiment(experiment.data, base, row)) for base in bases)
        return next(cells for cells in found if cells is not None)

    records = []
    for cells in all_cells:
        experiment = cells.experiment
        record: dict[str, Any] = {
            "data": experiment.data,
            "base": experiment.base,
            "strategy": experiment.row,
            "seeds": min(len(cells.means["hr"]), len(cells.runs)),
            "missing": "; ".join(cells.missing),
            "pretrained_apart": not cells.shares_pretraining(counterpart(experiment, config.reference)),
        }
        for name, means in cells.means.items():
            values = list(means.values())[: len(cells.runs)]
            record |= {name: mean(values), f"{name}_std": deviation(values)}
        record["ri"] = None
        for row in dict.fromkeys([config.reference, *config.tests]):
            other = counterpart(experiment, row)
            if other is not cells:
                _compare(record, cells, other, config)
        records.append(record)
    for row in config.tests:
        for family in dict.fromkeys((record["data"], record["base"]) for record in records):
            _correct([record for record in records if (record["data"], record["base"]) == family], row)
    return records


def _correct(records: Sequence[dict[str, Any]], row: str) -> None:
    """Adds Holm's corrections of the tests of one data set and base model against one row: of both metrics together."""
    for over in ("users", "seeds"):
        cells = [(record, f"{over}_{name}_vs_{row}") for record in records for name in METRICS]
        for (record, name), p in zip(cells, holm([record.get(f"p_{name}") for record, name in cells]), strict=True):
            record[f"holm_{name}"] = p


def _compare(record: dict[str, Any], cells: Cells, other: Cells, config: CompareConfig) -> None:
    """Adds the improvement over another row, and the tests against it, to a record."""
    row = other.experiment.row
    seeds = sorted(cells.means["hr"].keys() & other.means["hr"].keys())
    if seeds and row == config.reference:
        sides = ([side.means[name][seed] for name in METRICS for seed in seeds] for side in (cells, other))
        record["ri"] = improvement(*sides)
    if not seeds or row not in config.tests:
        return
    try:
        users_tests = over_users(cells.users(seeds), other.users(seeds), config.top)
    except ValueError as error:
        record["missing"] = "; ".join(filter(None, (record["missing"], str(error))))
        return
    for name in METRICS:
        tests = {"users": users_tests[name], "seeds": over_seeds(cells.means[name], other.means[name])}
        for over, test in tests.items():
            record |= {f"n_{over}_vs_{row}": test.n, f"p_{over}_{name}_vs_{row}": test.p}


def cell_records(all_cells: Sequence[Cells]) -> list[dict[str, Any]]:
    """A record of each cell and tested span.

    Args:
        all_cells: of each experiment.

    Returns:
        The lines of metrics.jsonl with their cell and its state; a cell without lines has a record without metrics.
    """
    records = []
    for cells in all_cells:
        for seed, job in cells.runs.items():
            experiment = cells.experiment
            cell = {"data": experiment.data, "row": experiment.row, "base": experiment.base, "seed": seed}
            state = {"status": job.state.status, "reason": job.state.reason, "run_seconds": job.state.seconds}
            lines = job.lines() if job.state.status in ("done", "failed") else []
            records += [cell | state | line for line in lines or [{}]]
    return records


def write_table(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes records as a Parquet file with the columns of all of them; it replaces the file at once."""
    names = list(dict.fromkeys(name for record in records for name in record))
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.table({name: pa.array([record.get(name) for record in records]) for name in names}), partial)
    partial.replace(path)
