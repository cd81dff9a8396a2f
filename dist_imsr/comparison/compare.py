"""A comparison from its grid to its tables."""

import logging
import os
from dataclasses import replace

from dist_imsr import devices
from dist_imsr.checks import require
from dist_imsr.comparison.config import CompareConfig
from dist_imsr.comparison.document import replace_part
from dist_imsr.comparison.grid import NO_BASE, Experiment, Grid
from dist_imsr.comparison.jobs import Job, Jobs
from dist_imsr.comparison.report import publish, quality_tables, time_tables, trial_records, tuning_tables
from dist_imsr.comparison.results import Cells, cell_records, summary_records, write_table
from dist_imsr.comparison.runner import Runner
from dist_imsr.comparison.tuning import best_trial, trials_of
from dist_imsr.config import to_yaml
from dist_imsr.console import output_console
from dist_imsr.distributed.command import FAILED, Stopped, run
from dist_imsr.distributed.signals import StopSignals
from dist_imsr.distributed.topology import read_topology
from dist_imsr.files import write_whole
from dist_imsr.training.folder import lock_folder

logger = logging.getLogger(__name__)


def compare(config: CompareConfig) -> int:
    """Tunes, trains and compares; runs that an earlier process finished are kept.

    Args:
        config: the comparison's keys.

    Returns:
        The exit status: 0; 2 for refused inputs; 1 where cells failed, once all others are finished and the tables
        are written; 75 after SIGTERM, 130 after Ctrl-C, where the same command continues.
    """

    def work() -> None:
        here = read_topology()
        count = devices.device_count()
        require(not 0 < count < config.ranks, "ranks", config.ranks, f"at most {count}, a device each")
        require(here.world_size == 1, "ranks", here.world_size, "one process that starts the others: use python")
        comparison = _Comparison(config, Grid(config, here.device))
        if config.table_only:
            require(config.output.is_dir(), "output", str(config.output), "the folder of an earlier comparison")
            comparison.report()
            return
        lock = lock_folder(config.output, "output")
        try:
            with StopSignals() as signals, signals.deferred():
                comparison.train(Runner(config.cores, config.ranks, signals, count))
                if signals.status:
                    finished = f"{comparison.finished} of {len(comparison.cells)} rows are finished"
                    raise Stopped(f"stopped; {finished}, and the same command continues", signals.status)
            comparison.report()
        finally:
            os.close(lock)

    return run("compare", work, "interrupted; the same command continues")


class _Comparison:
    """All trials and cells of a grid."""

    def __init__(self, config: CompareConfig, grid: Grid) -> None:
        self.config, self.grid = config, grid
        self.jobs = Jobs(config.output, config.keep)
        self.trials = [trials_of(grid, self.jobs, experiment) for experiment in grid.experiments]
        self.cells = self._cells()

    @property
    def finished(self) -> int:
        """How many rows have all their seeds."""
        return sum(not cells.missing for cells in self.cells)

    def train(self, runner: Runner) -> None:
        """Runs what is left, until a signal stops it; the output folder must be locked."""
        self.jobs.refresh()  # another process may have written to it until now
        if not runner.run([trial.job for trials in self.trials for trial in trials], "trials"):
            return
        self.cells = self._cells()
        runner.run([job for cells in self.cells for job in cells.jobs.values()], "cells")

    def report(self) -> None:
        """Writes results and tables.

        Raises:
            Stopped: if cells failed.
        """
        output, records = self.config.output, summary_records(self.config, self.cells)
        write_whole(output / "config.yaml", to_yaml(self.config))
        write_table(cell_records(self.cells), output / "results.parquet")
        write_table(records, output / "summary.parquet")
        if any(self.trials):
            write_table(trial_records(self.trials), output / "trials.parquet")
        tables = tuning_tables(self.config, self.trials) + quality_tables(self.config, records)
        text = publish(tables + time_tables(self.config, self.cells), output / "tables.md", output_console())
        if self.config.document is not None:
            replace_part(self.config.document, output.name, text)
        missing = [
            f"{'/'.join(cells.experiment.path.parts)} {reason}" for cells in self.cells for reason in cells.missing
        ]
        if missing:
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise Stopped(
                f"not all cells have numbers: {missing[0]}{more}; the tables in {output / 'tables.md'} say which. The "
                "same command tries them again",
                FAILED,
            )

    def _cells(self) -> list[Cells]:
        """The cells with the best values of the trials that have finished so far."""
        cells = []
        for experiment, trials in zip(self.grid.experiments, self.trials, strict=True):
            if experiment.base == NO_BASE:
                cells.append(
                    Cells(experiment, dict.fromkeys(self.config.seeds, self._baseline(experiment)), self.config.top)
                )
                continue
            values = best.values if (best := best_trial(trials)) else {}
            arguments, config = self.grid.arguments(experiment, values), self.grid.resolved(experiment, values)
            config = replace(config, eval=replace(config.eval, per_user=True))
            jobs = {}
            for seed in self.config.seeds:
                path = experiment.path / f"seed={seed}"
                jobs[seed] = self.jobs.job(
                    path="cells" / path,
                    config=replace(config, seed=seed),
                    arguments=arguments,
                    dataset=self.grid.datasets[experiment.data],
                    name=str(path),
                )
            cells.append(Cells(experiment, jobs, self.config.top))
        return cells

    def _baseline(self, experiment: Experiment) -> Job:
        """The run of a baseline, which stands for all seeds."""
        return self.jobs.baseline(
            "cells" / experiment.path,
            config=self.grid.baseline(experiment),
            arguments=self.grid.baseline_arguments(experiment),
            dataset=self.grid.datasets[experiment.data],
        )
