"""Shows a run's progress on rank 0: a bar in a terminal, log lines elsewhere."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dist_imsr.console import output_console

logger = logging.getLogger(__name__)

AnyBatch = TypeVar("AnyBatch")
_LINE_SECONDS = 30.0  # between two log lines of one phase


class Reporter:
    """Shows steps/s, users/s and the remaining time.

    Args:
        shown: whether this rank prints.
    """

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._console = Console(stderr=True)

    def on_device(self, steps: Any, device: torch.device, phase: str, users_per_step: float) -> Iterator[Any]:
        """Moves the batches of a phase to a device and shows their speed.

        Args:
            steps: `Steps` of batches.
            device: the device.
            phase: its name.
            users_per_step: average number of users in a global step.

        Returns:
            The batches.
        """
        return self.track((batch for batch, _ in steps.on(device)), len(steps), phase, users_per_step)

    def track(self, batches: Iterable[AnyBatch], steps: int, phase: str, users_per_step: float) -> Iterator[AnyBatch]:
        """Passes the batches of a phase through and shows their speed.

        Args:
            batches: the batches.
            steps: their number.
            phase: its name, e.g. ``"training in span 2, epoch 3"``.
            users_per_step: average number of users in a global step.

        Yields:
            The batches.
        """
        logger.debug("%s: %d steps", phase, steps)
        if not self._shown:
            yield from batches
        elif self._console.is_terminal:
            yield from self._bar(batches, steps, phase, users_per_step)
        else:
            yield from self._lines(batches, steps, phase, users_per_step)

    def table(self, rows: list[dict[str, Any]], columns: list[str], title: str, caption: str) -> None:
        """Prints rows as a table on standard output.

        Args:
            rows: values by column.
            columns: the columns to show, in order.
            title: shown above the table.
            caption: shown below it.
        """
        if not self._shown:
            return
        table = Table(*columns, title=title, caption=caption, caption_justify="left")
        for row in rows:
            table.add_row(*(_shown(row.get(column)) for column in columns))
        output_console().print(table)

    def _bar(self, batches: Iterable[AnyBatch], steps: int, phase: str, users_per_step: float) -> Iterator[AnyBatch]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(phase, total=steps, rate="")
            for batch in batches:
                yield batch
                speed = progress.tasks[0].speed
                rate = f"{speed:.1f} steps/s {speed * users_per_step:,.0f} users/s" if speed else ""
                progress.update(task, advance=1, rate=rate)

    def _lines(self, batches: Iterable[AnyBatch], steps: int, phase: str, users_per_step: float) -> Iterator[AnyBatch]:
        begin = reported = time.perf_counter()
        for done, batch in enumerate(batches, 1):
            yield batch
            now = time.perf_counter()
            if now - reported > _LINE_SECONDS:
                reported, speed = now, done / (now - begin)
                left = (steps - done) / speed
                logger.info(
                    "%s: step %d of %d, %.1f steps/s, %.0f users/s, %.0f s left",
                    phase,
                    done,
                    steps,
                    speed,
                    speed * users_per_step,
                    left,
                )


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
