"""Draws quality by kinds of targets and of users (Fig. 7a of the paper)."""

import plotly.graph_objects as go

from dist_imsr.report.figures.style import Block, Figure, Style, Tables, by, column, empty_plot, name_of

_TITLES = {
    "items": "kind of target",
    "activity": "interactions so far",
    "interests": "number of interests",
    "detection": "finding of the detector",
}


def groups(tables: Tables, style: Style) -> list[Block]:
    """Draws the section.

    Args:
        tables: as `dist_imsr.report.tables.groups.groups` computes them.
        style: of labels.
    """
    blocks = list[Block]()
    for (data, base, kind), rows in by(tables["groups"], "data", "base", "by"):
        plot = empty_plot(_TITLES[kind], "HR", barmode="group")
        for label in dict.fromkeys(row["label"] for row in rows):
            own = sorted((row for row in rows if row["label"] == label), key=lambda row: row["order"])
            tests = ["" if row["tests"] is None else f" ({row['tests']:,} tests)" for row in own]
            plot.add_trace(
                go.Bar(
                    x=column(own, "group"),
                    y=column(own, "hr"),
                    customdata=tests,
                    hovertemplate="%{x}: %{y:.4f}%{customdata}",
                    marker=style.bar(label),
                    **style.member(label),
                )
            )
        orders = {row["group"]: row["order"] for row in rows}
        plot.update_xaxes(type="category", categoryorder="array", categoryarray=sorted(orders, key=orders.__getitem__))
        title = f"HR by {_TITLES[kind]}: {data}, {base}"
        blocks.append(Figure(name_of("groups", kind, data, base), title, f"{title}, of each strategy.", plot))
    return blocks
