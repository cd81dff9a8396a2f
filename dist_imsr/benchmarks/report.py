"""Figures: several runs of one number, printed as a table and written as JSON."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from dist_imsr.files import write_whole


@dataclass(frozen=True)
class Figure:
    """A number that was measured several times.

    Args:
        name: under which it can be asked for.
        unit: of the runs.
        runs: the measured values, in the order of measuring.
        settings: what it was measured with.
    """

    name: str
    unit: str
    runs: Sequence[float]
    settings: dict[str, Any]

    def row(self) -> dict[str, Any]:
        """The figure as it is written.

        Returns:
            ``figure``, ``value`` (the median), ``unit``, ``median``, ``mean``, ``min``, ``max``, ``runs`` (how many)
            and ``settings``.
        """
        median, mean = statistics.median(self.runs), statistics.fmean(self.runs)
        spread = {"median": median, "mean": mean, "min": min(self.runs), "max": max(self.runs), "runs": len(self.runs)}
        return {"figure": self.name, "value": median, "unit": self.unit, **spread, "settings": self.settings}


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Divides the runs of two sides that took turns, pair by pair.

    Args:
        over: of the one side.
        under: of the other, as many.

    Returns:
        One ratio a pair.
    """
    return [one / other for one, other in zip(over, under, strict=True)]


def show(figures: Sequence[Figure], console: Console) -> None:
    """Prints figures as a table.

    Args:
        figures: in the order of rows.
        console: where.
    """
    table = Table(Column("figure", no_wrap=True), "median", "mean", "min", "max", "runs", "unit")
    for row in (figure.row() for figure in figures):
        numbers = (f"{row[name]:,.4g}" for name in ("median", "mean", "min", "max"))
        table.add_row(row["figure"], *numbers, str(row["runs"]), row["unit"])
    console.print(table)


def write_json(figures: Sequence[Figure], path: Path) -> None:
    """Writes figures as a list of objects, whole or not at all.

    Args:
        figures: in their order.
        path: the file; an older one is replaced.
    """
    write_whole(path, json.dumps([figure.row() for figure in figures], indent=1) + "\n")
