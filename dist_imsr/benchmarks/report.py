"""Figures: several runs of one number, beside what the machine could do at most, printed and written as JSON."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Column, Table

from dist_imsr.files import write_whole

Rates = Mapping[str, float]
"""What the machine does a second at most, by the names of the figures that `dist_imsr.benchmarks.ceilings` measures."""


class Least(NamedTuple):
    """The time below which nothing can be done.

    Args:
        figure: the ceiling that says so.
        seconds: of one run of a figure in seconds; of one unit of a figure that is a rate.
    """

    figure: str
    seconds: float


Bound = Callable[[Rates], Least]
"""Raises KeyError where the rate that it asks for was not measured."""


@dataclass(frozen=True)
class Figure:
    """A number that was measured several times.

    Args:
        name: under which it can be asked for.
        unit: of the runs; ``s``, or something ``/s`` for a figure that has a bound.
        runs: the measured values, in the order of measuring.
        settings: what it was measured with.
        bound: tells the figure's ceiling from the machine's rates; None for a figure without one.
        details: further keys of the figure as it is written.
    """

    name: str
    unit: str
    runs: Sequence[float]
    settings: dict[str, Any]
    bound: Bound | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def row(self, rates: Rates | None = None) -> dict[str, Any]:
        """The figure as it is written.

        Args:
            rates: of the machine, where they were measured.

        Returns:
            ``figure``, ``value`` (the median), ``unit``, ``median``, ``mean``, ``min``, ``max``, ``runs`` (how many)
            and ``settings``, the details, and ``ceiling`` where one is known: the ``figure`` that is its measure, the
            best ``value`` of this figure under it with its ``unit``, and ``share``, how much of that was reached.
        """
        median, mean = statistics.median(self.runs), statistics.fmean(self.runs)
        spread = {"median": median, "mean": mean, "min": min(self.runs), "max": max(self.runs), "runs": len(self.runs)}
        told = {"figure": self.name, "value": median, "unit": self.unit, **spread, "settings": self.settings}
        return told | dict(self.details) | self._ceiling(rates or {}, median)

    def _ceiling(self, rates: Rates, median: float) -> dict[str, Any]:
        if self.bound is None:
            return {}
        try:
            figure, seconds = self.bound(rates)
        except KeyError:
            return {}
        each = median if self.unit == "s" else 1 / median
        best = seconds if self.unit == "s" else 1 / seconds
        return {"ceiling": {"figure": figure, "value": best, "unit": self.unit, "share": seconds / each}}


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Divides the runs of two sides that took turns, pair by pair.

    Args:
        over: of the one side.
        under: of the other, as many.

    Returns:
        One ratio a pair.
    """
    return [one / other for one, other in zip(over, under, strict=True)]


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints figures as a table.

    Args:
        rows: as `Figure.row` gives them, in their order.
        console: where.
    """
    known = any("ceiling" in row for row in rows)
    table = Table(Column("figure", no_wrap=True), "median", "mean", "min", "max", "runs", "unit")
    for name in ("share", "of its ceiling by") if known else ():
        table.add_column(name)
    for row in rows:
        numbers = (f"{row[name]:,.4g}" for name in ("median", "mean", "min", "max"))
        ceiling = row.get("ceiling")
        share = (f"{ceiling['share']:.3g}", ceiling["figure"]) if ceiling else ("", "")
        table.add_row(row["figure"], *numbers, str(row["runs"]), row["unit"], *share[: 2 * known])
    console.print(table)


def write_json(told: Any, path: Path) -> None:
    """Writes what was measured, a figure a line, whole or not at all.

    Args:
        told: of lists, dicts, texts and numbers.
        path: the file; an older one is replaced.
    """
    write_whole(path, _lines(told) + "\n")


def _lines(told: Any) -> str:
    """JSON with each key of a dict, and each item of a list in it, on a line."""
    if isinstance(told, list):
        return "[\n" + ",\n".join(json.dumps(one) for one in told) + "\n]"
    if isinstance(told, dict):
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {_lines(one)}" for key, one in told.items()) + "\n}"
    return json.dumps(told)
