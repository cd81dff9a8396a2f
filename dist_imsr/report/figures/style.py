"""Colours, layout and the parts that all figures are made of."""

import html
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
import pyarrow as pa

# Okabe and Ito's colours, which the colour-blind can tell apart; black, which a dark page would swallow, is left out,
# and yellow, which a white one would.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
_DASHES = ("solid", "dash", "dot", "dashdot")
_PATTERNS = ("", "/", ".", "x")
_SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star")
_TICK = 24  # characters of a label on an axis, which leaves a phone half its width for the figure
EACH = 4
"""Up to so many labels of a data set and base model have figures of their own."""
SCALE, DIVERGING = "Cividis", "RdBu_r"
Record = dict[str, Any]
Tables = Mapping[str, pa.Table]


@dataclass(frozen=True)
class Figure:
    """A figure with its texts.

    Args:
        name: in files and links.
        title: above it.
        alt: what it shows, for who cannot see it.
        plot: the Plotly figure; traces that belong to a label carry it as ``meta``.
    """

    name: str
    title: str
    alt: str
    plot: go.Figure


@dataclass(frozen=True)
class TextTable:
    """A table of texts on the page.

    Args:
        title: above it.
        columns: their names.
        rows: one text for each column.
        labels: the label of each row, which hides with it; empty for rows without any.
        classes: CSS classes of cells by row and column.
        caption: how to read it.
        texts: the number of leading columns that hold texts; numbers follow.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    labels: list[str] = field(default_factory=list)
    classes: dict[tuple[int, int], str] = field(default_factory=dict)
    caption: str = ""
    texts: int = 1


Block = Figure | TextTable


class Style:
    """A look for each label, the same in all figures.

    Args:
        labels: in the order of the legend.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)

    def colour(self, label: str) -> str:
        """The label's colour."""
        return COLOURS[self._place(label) % len(COLOURS)]

    def trace(self, label: str, width: float = 2.0) -> dict[str, Any]:
        """The keys of a line with markers."""
        place = self._place(label)
        dash = _DASHES[self._round(label) % len(_DASHES)]
        symbol = _SYMBOLS[place % len(_SYMBOLS)]
        return self.member(label) | {
            "line": {"color": self.colour(label), "dash": dash, "width": width},
            "marker": {"color": self.colour(label), "symbol": symbol, "size": 7},
        }

    def bar(self, label: str) -> dict[str, Any]:
        """The ``marker`` of a bar."""
        return {"color": self.colour(label), "pattern": {"shape": _PATTERNS[self._round(label) % len(_PATTERNS)]}}

    def member(self, label: str) -> dict[str, Any]:
        """The keys of a trace that is switched on and off with its label."""
        return {"name": shown(label), "legendgroup": label, "meta": label}

    def shorten_ticks(self, plot: go.Figure) -> None:
        """Cuts the beginning of long labels on axes: those of paths differ at the end."""
        short = {shown(label): shown(f"…{label[1 - _TICK :]}") for label in self.labels if len(label) > _TICK}
        plot.update_xaxes(labelalias=short).update_yaxes(labelalias=short)

    def _round(self, label: str) -> int:
        """How often all colours were used before the label's."""
        return self._place(label) // len(COLOURS)

    def _place(self, label: str) -> int:
        return self.labels.index(label) if label in self.labels else len(self.labels)


def empty_plot(x: str, y: str, **layout: Any) -> go.Figure:
    """A figure without traces, in the report's layout.

    Args:
        x: the title of its horizontal axis.
        y: that of its vertical one.
        layout: further keys.
    """
    plot = go.Figure()
    plot.update_layout(
        template="none",
        height=330,
        margin={"l": 58, "r": 14, "t": 14, "b": 46},
        font={"family": "system-ui, sans-serif", "size": 12},
        hoverlabel={"namelength": -1},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        showlegend=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis={"title": {"text": x}, "automargin": True, "zeroline": False, "exponentformat": "none"},
        yaxis={"title": {"text": y}, "automargin": True, "zeroline": False, "exponentformat": "none"},
    )
    plot.update_layout(**layout)
    return plot.update_layout(margin={"b": 92}) if plot.layout.showlegend else plot


def whole_numbers(plot: go.Figure) -> go.Figure:
    """Puts a tick on each whole number of the horizontal axis: spans have no halves."""
    return plot.update_xaxes(tickmode="linear", dtick=1)


def by(table: pa.Table, *names: str) -> Iterator[tuple[tuple[Any, ...], list[Record]]]:
    """The records of a table by the values of some columns, in order of first appearance."""
    found: defaultdict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in table.to_pylist():
        found[tuple(record[name] for name in names)].append(record)
    yield from found.items()


def shown(text: str) -> str:
    """A text for Plotly, which reads markup in labels, names and hover texts."""
    return html.escape(text, quote=False)


def name_of(*parts: object) -> str:
    """A figure's name of plain characters."""
    text = "-".join(str(part) for part in parts if part not in ("", None))
    return "".join(one if one.isalnum() or one in "-_" else "_" for one in text)


def column(records: Sequence[Record], name: str) -> list[Any]:
    """The values of one column."""
    return [record[name] for record in records]


def vertical(plot: go.Figure, x: float, text: str) -> go.Figure:
    """Adds a vertical line with a text: a threshold."""
    return plot.add_vline(x=x, line={"dash": "dash", "color": "#888888"}, annotation={"text": text, "yanchor": "top"})


def metric_title(metric: str) -> str:
    """``hr@20_unseen`` as HR@20, unseen."""
    name, _, part = metric.partition("_")
    return f"{name.upper()}{', ' * bool(part)}{part}"


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table; a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"
