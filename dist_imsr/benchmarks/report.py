"""Figures: repeated measurements of one number and the machine's limit for it, as a table and as JSON."""

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
"""The machine's highest rates per second, by the names of the figures of `dist_imsr.benchmarks.ceilings`."""


class Floor(NamedTuple):
    """The shortest time in which the machine can do something.

    Args:
        figure: the ceiling that it follows from.
        seconds: of one run of a figure in seconds; of one unit of a figure that is a rate.
    """

    figure: str
    seconds: float


Bound = Callable[[Rates], Floor]
"""Raises KeyError where a rate that it needs was not measured."""


@dataclass(frozen=True)
class Figure:
    """A number that was measured several times.

    Args:
        name: of the figure in tables and files.
        unit: of the runs; ``s`` or ``.../s`` for a figure with a bound.
        runs: the measured values, in the order of measuring.
        settings: the options that it was measured with.
        bound: computes the figure's ceiling from the machine's rates; None for a figure without one.
        details: further keys of the written figure.
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
            ``figure``, ``value`` (the median), ``unit``, ``median``, ``mean``, ``min``, ``max``, ``runs`` (their
            number), ``settings``, the details, and ``ceiling`` where one is known: the limiting ``figure``, the best
            ``value`` that it allows with its ``unit``, and the ``share`` of that value that was reached.
        """
        median, mean = statistics.median(self.runs), statistics.fmean(self.runs)
        spread = {"median": median, "mean": mean, "min": min(self.runs), "max": max(self.runs), "runs": len(self.runs)}
        row = {"figure": self.name, "value": median, "unit": self.unit, **spread, "settings": self.settings}
        return row | dict(self.details) | self._ceiling(rates or {}, median)

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


def figures_of(
    settings: dict[str, Any], unit: str, runs: Mapping[str, Sequence[float]], bounds: Mapping[str, Bound] | None = None
) -> list[Figure]:
    """Figures by name that share settings and unit; some have a bound."""
    return [Figure(name, unit, each, settings, (bounds or {}).get(name)) for name, each in runs.items()]


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Divides the runs of two sides that took turns, pair by pair."""
    return [one / other for one, other in zip(over, under, strict=True)]


def show(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints rows of `Figure.row` as a table."""
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


def write_json(report: Any, path: Path) -> None:
    """Replaces a file by a report, atomically; each key, and each item of a list, gets a line of its own."""
    write_whole(path, _lines(report) + "\n")


def _lines(value: Any) -> str:
    if isinstance(value, list):
        return "[\n" + ",\n".join(json.dumps(one) for one in value) + "\n]"
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {_lines(one)}" for key, one in value.items()) + "\n}"
    return json.dumps(value)
