"""The steps of a refresh: commands of this package, each in processes of its own."""

import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from dist_imsr.config import import_modules
from dist_imsr.console import run_writer
from dist_imsr.data.prepare import PrepareConfig
from dist_imsr.data.prepare import prepare as prepare_data
from dist_imsr.distributed.command import BAD_INPUT, FAILED, INTERRUPTED, REQUEUE, Stopped, run
from dist_imsr.distributed.signals import StopSignals
from dist_imsr.evaluation.index import ExportConfig, export_run
from dist_imsr.evaluation.recommend import RecommendConfig, write_recommendations
from dist_imsr.processes import RankGroup, wait_for_any
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.run import train as train_run

logger = logging.getLogger(__name__)


def prepare(config: PrepareConfig) -> int:
    """The command of a step that changes the prepared data; returns the exit status, as the others do."""

    def work(console: Console) -> None:
        prepare_data(config, console)

    return run_writer("prepare", work)


def train(config: TrainConfig) -> int:
    """The command of each rank that trains."""
    import_modules(config.imports)
    return train_run(config)


def recommend(config: RecommendConfig) -> int:
    """The command of each rank that writes recommendations."""
    return run(
        "recommend", lambda: logger.info(write_recommendations(config).describe(config)), "interrupted; nothing written"
    )


def export(config: ExportConfig) -> int:
    """The command that exports for serving."""
    return run("export", lambda: logger.info(export_run(config)), "interrupted; nothing written")


class Steps:
    """Runs the commands of a refresh, one after the other.

    Args:
        log: a file for what they print, which is also shown on standard error; one of an earlier refresh is replaced.
        signals: SIGTERM, SIGUSR1 and Ctrl-C, which are passed on.
        seconds: that each step takes, by its name; filled in.
    """

    def __init__(self, log: Path, signals: StopSignals, seconds: dict[str, float]) -> None:
        self.log, self.signals, self.seconds = log, signals, seconds
        self.log.write_text("")

    def run(self, name: str, command: Callable[[Any], int], config: Any, ranks: int = 1) -> None:
        """Runs a command to its end.

        Args:
            name: of the step.
            command: one of this module.
            config: its configuration.
            ranks: number of processes.

        Raises:
            Stopped: after a stop signal, or with the command's message if it failed.
        """
        self._check_signals(f"before {name}")
        # A refresh that is started again must not meet commands of one that was killed.
        group = RankGroup(command, (config,), ranks, self.log, orphaned=signal.SIGKILL)
        with self.log.open(errors="replace") as printed:
            printed.seek(group.log_start)
            stopping = False
            while not group.ended():
                if self.signals.status and not stopping:
                    stopping = True
                    group.stop()
                wait_for_any([group], 0.5)
                _show(printed)
            _show(printed)
        self.seconds[name] = round(group.seconds, 3)
        logger.info("%s: %.1f s", name, group.seconds)
        self._check_signals(f"during {name}")
        if group.failure is not None:
            known = group.failure in (BAD_INPUT, REQUEUE, INTERRUPTED)
            raise Stopped(f"{name}: {group.failure_reason(command.__name__)}", group.failure if known else FAILED)

    def _check_signals(self, when: str) -> None:
        if self.signals.status:
            raise Stopped(f"stopped {when}; the same command continues", self.signals.status)


def _show(printed: TextIO) -> None:
    sys.stderr.write(printed.read())
    sys.stderr.flush()
