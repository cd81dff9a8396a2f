"""Draws one user's interests (Fig. 2, 7b and 7c of the paper)."""

import plotly.graph_objects as go
import pyarrow as pa

from dist_imsr.report.figures.style import (
    COLOURS,
    DIVERGING,
    Block,
    Figure,
    Record,
    Style,
    Tables,
    column,
    empty_plot,
    shown,
)

_LONGEST = 28  # of a title in a heatmap


def one_user(tables: Tables, style: Style) -> list[Block]:
    """Draws the section.

    Args:
        tables: as `dist_imsr.report.tables.one_user.one_user` computes them.
        style: of labels.
    """
    blocks = list[Block]()
    if "one_user_map" in tables:
        blocks.append(_map(tables["one_user_map"]))
    if "one_user_targets" in tables:
        rows = tables["one_user_targets"].to_pylist()
        title = f"User {rows[0]['user']}: interests against the items of span {rows[0]['span']}"
        blocks.append(_heatmap(rows, "one_user_targets", title))
    if "one_user_items" in tables:
        rows = tables["one_user_items"].to_pylist()
        for when in ("before", "after"):
            own = [row for row in rows if row["when"] == when]
            if own:
                title = f"User {own[0]['user']}: items of span {own[0]['span']}, {when} training on it"
                blocks.append(_heatmap(own, f"one_user_items_{when}", title))
    return blocks


def _map(table: pa.Table) -> Figure:
    rows = table.to_pylist()
    user, label = rows[0]["user"], rows[0]["label"]
    plot = empty_plot("", "", showlegend=True, height=440)
    plot.update_xaxes(showticklabels=False, showgrid=False, showline=False, ticks="")
    plot.update_yaxes(showticklabels=False, showgrid=False, showline=False, ticks="")
    for slot in dict.fromkeys(row["slot"] for row in rows):
        own = [row for row in rows if row["slot"] == slot]
        line = {"color": "#888888", "width": 1, "dash": "dot"}
        plot.add_trace(
            go.Scatter(
                x=column(own, "x"), y=column(own, "y"), mode="lines", line=line, hoverinfo="skip", showlegend=False
            )
        )
    for place, span in enumerate(dict.fromkeys(row["span"] for row in rows)):
        own = [row for row in rows if row["span"] == span]
        plot.add_trace(
            go.Scatter(
                x=column(own, "x"),
                y=column(own, "y"),
                mode="markers+text",
                text=[str(row["slot"] + 1) for row in own],
                textposition="top center",
                textfont={"size": 10},
                name=f"span {span}",
                marker={
                    "color": COLOURS[place % len(COLOURS)],
                    "size": 9,
                    "symbol": ["star" if row["born"] == span else "circle" for row in own],
                },
                customdata=[[row["slot"] + 1, row["born"]] for row in own],
                hovertemplate="interest %{customdata[0]}, born in span %{customdata[1]}",
            )
        )
    title = f"User {user}: interests through the spans ({label}; stars: new in the span)"
    alt = (
        f"t-SNE of the interests of user {user} after each span; dotted lines join the places of one interest in "
        "successive spans."
    )
    return Figure("one_user_map", title, alt, plot)


def _heatmap(rows: list[Record], name: str, title: str) -> Figure:
    items = list(dict.fromkeys(row["item"] for row in rows))
    slots = list(dict.fromkeys(row["slot"] for row in rows))
    found = {(row["item"], row["slot"]): row["product"] for row in rows}
    titles = {row["item"]: row["title"] for row in rows}
    born = {row["slot"]: row["born"] for row in rows}
    short = [_short(titles[item]) for item in items]
    largest = max(abs(row["product"]) for row in rows) or 1.0
    plot = empty_plot("interest (born in span)", "", height=130 + 22 * len(items))
    plot.add_trace(
        go.Heatmap(
            z=[[found[item, slot] for slot in slots] for item in items],
            x=[f"{slot + 1} ({born[slot]})" for slot in slots],
            y=[f"{number}: {shown(text)}" for number, text in enumerate(short, 1)],
            customdata=[[shown(titles[item]) for _ in slots] for item in items],
            colorscale=DIVERGING,
            zmin=-largest,
            zmax=largest,
            colorbar={"thickness": 10},
            hovertemplate="%{customdata}<br>interest %{x}: %{z:.4f}<extra></extra>",
        )
    )
    plot.update_yaxes(autorange="reversed", type="category")
    alt = f"{title}: dot products of {len(items)} items, the latest ones, with {len(slots)} interests."
    return Figure(name, title, alt, plot)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
