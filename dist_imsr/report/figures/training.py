"""Draws how training went."""

import plotly.graph_objects as go

from dist_imsr.report.figures.style import (
    COLOURS,
    Block,
    Figure,
    Record,
    Style,
    Tables,
    by,
    column,
    empty_plot,
    name_of,
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
        shown = _largest(tables["training_seconds"].to_pylist())
        for (data, base, label), rows in by(tables["training_seconds"], "data", "base", "label"):
            blocks.append(_seconds(rows, data, base, label, shown))
    if "training_memory" in tables:
        for (data, base, label), rows in by(tables["training_memory"], "data", "base", "label"):
            blocks.append(_memory(rows, data, base, label))
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


def _seconds(rows: list[Record], data: str, base: str, label: str, shown: list[str]) -> Figure:
    plot = whole_numbers(empty_plot("span", "seconds", barmode="stack", showlegend=True))
    spans = list(dict.fromkeys(row["span"] for row in rows))
    series = {phase: [_sum(rows, span, [phase]) for span in spans] for phase in shown}
    rest = list(dict.fromkeys(row["phase"] for row in rows if row["phase"] not in shown))
    if rest:
        series["the others"] = [_sum(rows, span, rest) for span in spans]
    for place, (phase, seconds) in enumerate(series.items()):
        colour = COLOURS[place] if place < len(COLOURS) else "#999999"
        plot.add_trace(
            go.Bar(
                x=spans,
                y=seconds,
                name=phase,
                meta=label,
                marker={"color": colour},
                hovertemplate="span %{x}: %{y:.2f} s",
            )
        )
    title = f"Seconds by phase, {label}: {data}, {base}"
    return Figure(name_of("training", "seconds", data, base, label), title, f"{title}, of each span.", plot)


def _sum(rows: list[Record], span: int, phases: list[str]) -> float:
    return float(sum(row["seconds"] for row in rows if row["span"] == span and row["phase"] in phases))


def _memory(rows: list[Record], data: str, base: str, label: str) -> Figure:
    plot = empty_plot("", "MiB", barmode="group", showlegend=True)
    for rank in dict.fromkeys(row["rank"] for row in rows):
        own = [row for row in rows if row["rank"] == rank]
        plot.add_trace(
            go.Bar(
                x=column(own, "phase"),
                y=[row["peak"] / 2**20 for row in own],
                name=f"rank {rank}",
                meta=label,
                marker={"color": COLOURS[rank % len(COLOURS)]},
                hovertemplate="%{x}: %{y:,.0f} MiB",
            )
        )
    title = f"Peak memory by phase, {label}: {data}, {base}"
    return Figure(name_of("training", "memory", data, base, label), title, f"{title}, of each rank.", plot)
