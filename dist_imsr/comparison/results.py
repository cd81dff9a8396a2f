"""What finished cells come to: a row for each cell and span, and a summary of each row of the tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dist_imsr.comparison.config import CompareConfig
from dist_imsr.comparison.grid import Entry
from dist_imsr.comparison.jobs import Job
from dist_imsr.comparison.statistics import METRICS, deviation, improvement, mean, over_seeds, over_users


@dataclass(frozen=True)
class Cells:
    """The cells of one row with one base on one data set.

    Args:
        entry: which.
        jobs: its runs by seed.
        top: N.
    """

    entry: Entry
    jobs: dict[int, Job]
    top: int

    @property
    def missing(self) -> list[str]:
        """Of each seed without numbers, why."""
        states = {seed: job.state for seed, job in self.jobs.items() if not job.done}
        return [
            f"seed {seed} {f'failed: {state.reason}' if state.status == 'failed' else 'has not been run'}"
            for seed, state in states.items()
        ]

    @cached_property
    def means(self) -> dict[str, dict[int, float]]:
        """By metric and seed, the mean over tested spans, in per cent."""
        lines = {seed: job.lines() for seed, job in self.jobs.items() if job.done}
        return {
            name: {
                seed: 100 * found
                for seed, each in lines.items()
                if (found := mean([line[f"{name}@{self.top}"] for line in each if line["users"]])) is not None
            }
            for name in METRICS
        }

    def users(self, seeds: Sequence[int]) -> list[Path]:
        """The files of users' own values.

        Args:
            seeds: of which runs.

        Returns:
            Of each run and tested span, one.
        """
        return [path for seed in seeds for path in self.jobs[seed].users()]

    def begins_like(self, other: "Cells") -> bool:
        """Whether it shares its pre-trained models with another row of the same base.

        Args:
            other: the row.

        Returns:
            True also for a base of its own, which nobody could share.
        """
        needs = ([job.needs for job in cells.jobs.values()] for cells in (self, other))
        return self.entry.base != other.entry.base or all(one is two for one, two in zip(*needs, strict=True))

    def seconds(self) -> dict[int, float]:
        """Seconds of training, by span.

        Returns:
            Means over seeds.
        """
        spans: dict[int, list[float]] = {}
        for job in self.jobs.values():
            for line in job.lines() if job.done else []:
                spans.setdefault(line["span"], []).append(line["train_seconds"])
        return {span: sum(values) / len(values) for span, values in spans.items()}


def summary(config: CompareConfig, all_cells: Sequence[Cells]) -> list[dict[str, Any]]:
    """A record of each row of the tables.

    A row of a base model that the reference does not have is compared with the reference with the first of ``bases``.
    Where seeds of one side are missing, the other side's are left out of that comparison.

    Args:
        config: the comparison's keys.
        all_cells: of each row, base and data set.

    Returns:
        Plain values; None for what cannot be told.
    """
    by_entry = {cells.entry: cells for cells in all_cells}

    def beside(entry: Entry, row: str) -> Cells:
        same = by_entry.get(Entry(entry.data, entry.base, row))
        return same or by_entry[Entry(entry.data, config.bases[0], row)]

    records = []
    for cells in all_cells:
        entry = cells.entry
        record: dict[str, Any] = {
            **{"data": entry.data, "base": entry.base, "strategy": entry.row, "seeds": len(cells.means["hr"])},
            "missing": "; ".join(cells.missing),
            "pretrained_apart": not cells.begins_like(beside(entry, config.reference)),
        }
        for name in METRICS:
            values = list(cells.means[name].values())
            record |= {name: mean(values), f"{name}_std": deviation(values)}
        record["ri"] = None
        for other in dict.fromkeys([config.reference, *config.tests]):
            paired = beside(entry, other)
            if paired is cells:
                continue
            seeds = sorted(cells.means["hr"].keys() & paired.means["hr"].keys())
            if seeds and other == config.reference:
                sides = ([one.means[name][seed] for name in METRICS for seed in seeds] for one in (cells, paired))
                record["ri"] = improvement(*sides)
            if seeds and other in config.tests:
                try:
                    of_users = over_users(cells.users(seeds), paired.users(seeds), config.top)
                except ValueError as error:
                    record["missing"] = "; ".join(filter(None, (record["missing"], str(error))))
                    continue
                for name in METRICS:
                    tests = {"users": of_users[name], "seeds": over_seeds(cells.means[name], paired.means[name])}
                    for over, test in tests.items():
                        record |= {f"n_{over}_vs_{other}": test.n, f"p_{over}_{name}_vs_{other}": test.p}
        records.append(record)
    return records


def measured(all_cells: Sequence[Cells]) -> list[dict[str, Any]]:
    """A record of each cell and tested span.

    Args:
        all_cells: of each row, base and data set.

    Returns:
        The lines of metrics.jsonl, and to which cell they belong; one without numbers for a cell without lines.
    """
    records = []
    for cells in all_cells:
        for seed, job in cells.jobs.items():
            entry = cells.entry
            named = {"data": entry.data, "row": entry.row, "base": entry.base, "seed": seed}
            how = {"status": job.state.status, "reason": job.state.reason, "run_seconds": job.state.seconds}
            lines = job.lines() if job.state.status in ("done", "failed") else []
            records += [named | how | line for line in lines or [{}]]
    return records


def write_table(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes records as a Parquet file, whole or not at all.

    Args:
        records: with the columns of all of them.
        path: the file.
    """
    names = list(dict.fromkeys(name for record in records for name in record))
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.table({name: pa.array([record.get(name) for record in records]) for name in names}), partial)
    partial.replace(path)
