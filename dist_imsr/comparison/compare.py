"""A comparison from its grid to its tables."""

import logging
import os
from dataclasses import replace

from dist_imsr import devices
from dist_imsr.checks import require
from dist_imsr.comparison.config import CompareConfig
from dist_imsr.comparison.grid import Grid
from dist_imsr.comparison.jobs import Jobs
from dist_imsr.comparison.report import publish, quality, seconds, tried, tuned
from dist_imsr.comparison.results import Cells, measured, summary, write_table
from dist_imsr.comparison.runner import Runner
from dist_imsr.comparison.tuning import chosen, trials_of
from dist_imsr.config import to_yaml
from dist_imsr.console import output_console
from dist_imsr.distributed.command import FAILED, Stopped, run
from dist_imsr.distributed.signals import StopSignals
from dist_imsr.distributed.topology import read_topology
from dist_imsr.files import write_whole
from dist_imsr.training.folder import hold

logger = logging.getLogger(__name__)


def compare(config: CompareConfig) -> int:
    """Tunes, trains and compares, from where an earlier process came to.

    Args:
        config: the comparison's keys.

    Returns:
        The exit status: 0; 2 for refused inputs; 1 where cells failed, once all others are finished and the tables
        are written; 75 after SIGTERM, 130 after Ctrl-C, when the same command goes on.
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
        claim = hold(config.output, "output")
        try:
            write_whole(config.output / "config.yaml", to_yaml(config))
            with StopSignals() as signals, signals.deferred():
                comparison.train(Runner(config.cores, config.ranks, signals, count))
                if signals.status:
                    finished = f"{comparison.finished} of {len(comparison.cells)} rows are finished"
                    raise Stopped(f"stopped; {finished}, and the same command goes on", signals.status)
            comparison.report()
        finally:
            os.close(claim)

    return run("compare", work, "interrupted; the same command goes on")


class _Comparison:
    """All trials and cells of a grid."""

    def __init__(self, config: CompareConfig, grid: Grid) -> None:
        self.config, self.grid = config, grid
        self.jobs = Jobs(config.output, grid.device, config.keep)
        self.trials = [trials_of(grid, self.jobs, entry) for entry in grid.entries]
        self.cells = self._cells()

    @property
    def finished(self) -> int:
        """How many rows have all their seeds."""
        return sum(not cells.missing for cells in self.cells)

    def train(self, runner: Runner) -> None:
        """Runs what is left, until somebody asks to stop; the output must be held."""
        self.jobs.refresh()  # another process may have held it until now
        if not runner.run([trial.job for trials in self.trials for trial in trials], "trials"):
            return
        self.cells = self._cells()
        runner.run([job for cells in self.cells for job in cells.jobs.values()], "cells")

    def report(self) -> None:
        """Writes results and tables.

        Raises:
            Stopped: if cells failed.
        """
        output, records = self.config.output, summary(self.config, self.cells)
        write_table(measured(self.cells), output / "results.parquet")
        write_table(records, output / "summary.parquet")
        if any(self.trials):
            write_table(tried(self.trials), output / "trials.parquet")
        sheets = [*tuned(self.config, self.trials), *quality(self.config, records), *seconds(self.config, self.cells)]
        publish(sheets, output / "tables.md", output_console())
        missing = [f"{'/'.join(cells.entry.place.parts)} {reason}" for cells in self.cells for reason in cells.missing]
        if missing:
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise Stopped(
                f"not all cells have numbers: {missing[0]}{more}; the tables in {output / 'tables.md'} say which. The "
                "same command tries them again",
                FAILED,
            )

    def _cells(self) -> list[Cells]:
        """With the values that the trials tell so far."""
        found, seeds = [], self.config.seeds
        for entry, trials in zip(self.grid.entries, self.trials, strict=True):
            values = best.values if (best := chosen(trials)) else {}
            arguments, config = self.grid.arguments(entry, values), self.grid.resolved(entry, values)
            config = replace(config, eval=replace(config.eval, per_user=True))
            dataset, places = self.grid.datasets[entry.data], {seed: entry.place / f"seed={seed}" for seed in seeds}
            jobs = {
                seed: self.jobs.job("cells" / place, replace(config, seed=seed), arguments, dataset, str(place))
                for seed, place in places.items()
            }
            found.append(Cells(entry, jobs, self.config.top))
        return found
