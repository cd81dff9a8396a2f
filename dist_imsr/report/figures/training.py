"""Draws how training went."""

from collections.abc import Iterator

import plotly.graph_objects as go
import pyarrow as pa

from dist_imsr.report.figures.style import (
    COLOURS,
    EACH,
    Block,
    Figure,
    Record,
    Style,
    Tables,
    by,
    column,
    empty_plot,
    name_of,
    shown,
    whole_numbers,
)

_TITLES = {"train/loss": "Loss of each step", "train/retention_loss": "Retention loss of each step"}
_LARGEST = 7  # phases; the others are one


def training(tables: Tables, style: Style) -> list[Block]:
    """Draws the section.

    Args:
        tables: as `dist_imsr.report.tables.training.training` computes them.
        style: of labels.
    """
    blocks = list[Block]()
    if "training_curves" in tables:
        for (data, base, tag), rows in by(tables["training_curves"], "data", "base", "tag"):
            blocks.append(_curves(rows, data, base, tag, style))
    if "training_speed" in tables:
        for (data, base), rows in by(tables["training_speed"], "data", "base"):
            blocks.append(_speed(rows, data, base, style))
    if "training_seconds" in tables:
        largest = _largest(tables["training_seconds"].to_pylist())
        for title, parts, rows in _few(tables["training_seconds"]):
            blocks.append(_seconds(rows, title, name_of("training", "seconds", *parts), largest))
    if "training_memory" in tables:
        for title, parts, rows in _few(tables["training_memory"]):
            blocks.append(_memory(rows, title, name_of("training", "memory", *parts)))
    return blocks


def _curves(rows: list[Record], data: str, base: str, tag: str, style: Style) -> Figure:
    validation = tag.startswith("validation/")
    title = f"Validation ({tag.partition('/')[2]}) of each epoch" if validation else _TITLES[tag]
    plot = empty_plot("step", tag.partition("/")[2])
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label]
        keys = style.trace(label, width=1.5)
        keys["marker"]["size"] = 4
        plot.add_trace(
            go.Scatter(
                x=column(own, "step"),
                y=column(own, "value"),
                mode="markers+lines" if validation else "lines",
                hovertemplate="step %{x:,.0f}: %{y:.4f}",
                **keys,
            )
        )
    alt = f"{title} of each strategy on {data} with {base}, all spans one after the other."
    return Figure(name_of("training", tag, data, base), f"{title}: {data}, {base}", alt, plot)


def _speed(rows: list[Record], data: str, base: str, style: Style) -> Figure:
    known = any(row["per_second"] is not None for row in rows)
    key, what = ("per_second", "interactions of the span per second") if known else ("seconds", "seconds of training")
    plot = whole_numbers(empty_plot("span", what))
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label and row[key] is not None]
        hover = "span %{x}: %{y:,.0f} per second, %{customdata:.1f} s" if known else "span %{x}: %{y:.1f} s"
        plot.add_trace(
            go.Scatter(
                x=column(own, "span"),
                y=column(own, key),
                customdata=column(own, "seconds"),
                mode="lines+markers",
                hovertemplate=hover,
                **style.trace(label),
            )
        )
    plot.update_yaxes(type="log")
    title = f"Speed of training: {data}, {base}"
    return Figure(name_of("training", "speed", data, base), title, f"{title}: {what}, by span and strategy.", plot)


def _largest(rows: list[Record]) -> list[str]:
    """The phases that take longest over all runs, which have the same colours in each figure."""
    totals: dict[str, float] = {}
    for row in rows:
        totals[row["phase"]] = totals.get(row["phase"], 0.0) + row["seconds"]
    return sorted(totals, key=lambda phase: -totals[phase])[:_LARGEST]


def _few(table: pa.Table) -> Iterator[tuple[str, tuple[str, ...], list[Record]]]:
    """The records of each figure, with a title and the parts of a name: of each label, or of all if there are many."""
    for (data, base), rows in by(table, "data", "base"):
        labels = list(dict.fromkeys(row["label"] for row in rows))
        if len(labels) > EACH:
            yield f"{data}, {base}", (data, base), rows
        else:
            for label in labels:
                own = [row for row in rows if row["label"] == label]
                yield f"{label}: {data}, {base}", (data, base, label), own


def _seconds(rows: list[Record], title: str, name: str, largest: list[str]) -> Figure:
    labels = list(dict.fromkeys(row["label"] for row in rows))
    key, what = ("span", "span") if len(labels) == 1 else ("label", "")
    plot = empty_plot(what, "seconds", barmode="stack", showlegend=True)
    places = list(dict.fromkeys(row[key] for row in rows))
    series = {phase: [_sum(rows, key, place, [phase]) for place in places] for phase in largest}
    rest = list(dict.fromkeys(row["phase"] for row in rows if row["phase"] not in largest))
    if rest:
        series["the others"] = [_sum(rows, key, place, rest) for place in places]
    for at, (phase, seconds) in enumerate(series.items()):
        colour = COLOURS[at] if at < len(COLOURS) else "#999999"
        plot.add_trace(
            go.Bar(
                x=[shown(place) if isinstance(place, str) else place for place in places],
                y=seconds,
                name=phase,
                meta=labels[0] if len(labels) == 1 else None,
                marker={"color": colour},
                hovertemplate=f"{what} %{{x}}: %{{y:.2f}} s",
            )
        )
    plot = whole_numbers(plot) if len(labels) == 1 else plot.update_xaxes(type="category")
    full = f"Seconds by phase, {title}"
    return Figure(name, full, f"{full}, of each {'span' if len(labels) == 1 else 'row, all spans together'}.", plot)


def _sum(rows: list[Record], key: str, place: object, phases: list[str]) -> float:
    return float(sum(row["seconds"] for row in rows if row[key] == place and row["phase"] in phases))


def _memory(rows: list[Record], title: str, name: str) -> Figure:
    labels = list(dict.fromkeys(row["label"] for row in rows))
    key = "phase" if len(labels) == 1 else "label"
    plot = empty_plot("", "MiB", barmode="group", showlegend=True)
    for rank in dict.fromkeys(row["rank"] for row in rows):
        peaks: dict[str, int] = {}
        for row in rows:
            if row["rank"] == rank:
                peaks[row[key]] = max(peaks.get(row[key], 0), row["peak"])
        plot.add_trace(
            go.Bar(
                x=[shown(one) for one in peaks],
                y=[peak / 2**20 for peak in peaks.values()],
                name=f"rank {rank}",
                meta=labels[0] if len(labels) == 1 else None,
                marker={"color": COLOURS[rank % len(COLOURS)]},
                hovertemplate="%{x}: %{y:,.0f} MiB",
            )
        )
    plot.update_xaxes(type="category")
    full = f"Peak memory, {title}"
    return Figure(name, full, f"{full}, by {'phase' if len(labels) == 1 else 'row'}, of each rank.", plot)
