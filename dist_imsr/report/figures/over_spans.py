"""Draws metrics by tested span (Fig. 4 of the paper)."""

import plotly.graph_objects as go

from dist_imsr.report.figures.style import (
    Block,
    Figure,
    Record,
    Style,
    Tables,
    column,
    empty_plot,
    metric_title,
    name_of,
    whole_numbers,
)


def over_spans(tables: Tables, style: Style) -> list[Block]:
    """Draws the section.

    Args:
        tables: as `dist_imsr.report.tables.over_spans.over_spans` computes them.
        style: of labels.

    Returns:
        A figure for each metric of each data set and base model; baselines, which have none, are in each.
    """
    blocks = list[Block]()
    table = tables["over_spans"].to_pylist()
    bases = list(dict.fromkeys((row["data"], row["base"]) for row in table if row["base"] != "-"))
    for data, base in bases or list(dict.fromkeys((row["data"], row["base"]) for row in table)):
        here = [row for row in table if row["data"] == data and row["base"] in (base, "-")]
        for metric in dict.fromkeys(row["metric"] for row in here):
            plot = whole_numbers(empty_plot("tested span", metric_title(metric)))
            for label in dict.fromkeys(row["label"] for row in here):
                rows = [row for row in here if row["label"] == label and row["metric"] == metric]
                if not rows:
                    continue
                if all(row["deviation"] is not None for row in rows):
                    plot.add_trace(_band(rows, style, label))
                spread = ["" if row["deviation"] is None else f" ± {row['deviation']:.4f}" for row in rows]
                plot.add_trace(
                    go.Scatter(
                        x=column(rows, "test_span"),
                        y=column(rows, "mean"),
                        mode="lines+markers",
                        customdata=spread,
                        hovertemplate="span %{x}: %{y:.4f}%{customdata}",
                        **style.trace(label),
                    )
                )
            title = f"{metric_title(metric)}: {data}, {base}"
            alt = f"{metric_title(metric)} of each strategy by tested span on {data} with {base}."
            blocks.append(Figure(name_of("spans", metric, data, base), title, alt, plot))
    return blocks


def _band(rows: list[Record], style: Style, label: str) -> go.Scatter:
    """Mean plus and minus a standard deviation over seeds."""
    spans = column(rows, "test_span")
    high = [row["mean"] + row["deviation"] for row in rows]
    low = [row["mean"] - row["deviation"] for row in rows]
    return go.Scatter(
        x=[*spans, *reversed(spans)],
        y=[*high, *reversed(low)],
        fill="toself",
        fillcolor=style.colour(label),
        opacity=0.18,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        **style.member(label),
    )
