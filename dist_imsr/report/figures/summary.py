"""Draws the summary: metrics with intervals, the data, configurations and versions."""

import plotly.graph_objects as go

from dist_imsr.report.figures.style import (
    COLOURS,
    Block,
    Figure,
    Record,
    Style,
    Tables,
    TextTable,
    by,
    column,
    empty_plot,
    metric_title,
    name_of,
    number,
    shown,
    whole_numbers,
)

_SHARES = {"new_users": "new users", "new_items": "with new items", "repeats": "repeats"}


def summary(tables: Tables, style: Style) -> list[Block]:
    """Draws the section.

    Args:
        tables: as `dist_imsr.report.tables.summary.summary` computes them.
        style: of labels.

    Returns:
        For each data set and base model a table of metrics and their figures; the data sets; settings; environments.
    """
    blocks = list[Block]()
    if "summary" in tables:
        for (data, base), rows in by(tables["summary"], "data", "base"):
            blocks.append(_grid(rows, f"Metrics: {data}, {base}"))
            for metric in dict.fromkeys(row["metric"] for row in rows):
                chosen = [row for row in rows if row["metric"] == metric]
                blocks.append(_dots(chosen, metric, data, base, style))
    if "data_spans" in tables:
        for (data,), rows in by(tables["data_spans"], "data"):
            blocks += [_data_grid(rows, data), _interactions(rows, data), _shares(rows, data)]
    if "settings" in tables:
        rows = tables["settings"].to_pylist()
        keys = ["key", "value", "default", "of"]
        cells = [[row[key] for key in keys] for row in rows]
        blocks.append(TextTable("Settings that differ from the defaults", keys, cells, texts=4))
    if "environments" in tables:
        rows = tables["environments"].to_pylist()
        keys = ["label", "started", "command", "commit", "versions", "machine"]
        cells = [[row[key] for key in keys] for row in rows]
        blocks.append(TextTable("Commands and versions", ["run", *keys[1:]], cells, column(rows, "label"), texts=6))
    return blocks


def _grid(rows: list[Record], title: str) -> TextTable:
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    labels = list(dict.fromkeys(row["label"] for row in rows))
    found = {(row["label"], row["metric"]): row for row in rows}
    versus = next((row["versus"] for row in rows if row["versus"]), None)
    cells, classes = [], {}
    for place, label in enumerate(labels):
        line = [label]
        for metric in metrics:
            row = found.get((label, metric))
            line.append("-" if row is None else _value(row))
            if row is not None and row["p"] is not None and row["p"] < 0.05:
                classes[place, len(line) - 1] = "better" if row["difference"] > 0 else "worse"
        cells.append(line)
    caption = (
        "Means over spans and seeds, with the 95 percent interval over users where each user's metrics are known "
        "(--eval.per_user), else over seeds."
    )
    if versus:
        caption += (
            f" Marked: better (▲) or worse (▼) than {versus}, p < 0.05 in a paired t-test over users, uncorrected."
        )
    for (place, at), kind in classes.items():
        cells[place][at] += " ▲" if kind == "better" else " ▼"
    return TextTable(title, ["", *map(metric_title, metrics)], cells, labels, classes, caption)


def _value(row: Record) -> str:
    span = "" if row["low"] is None else f" [{row['low']:.4f}, {row['high']:.4f}]"
    return f"{row['mean']:.4f}{span}"


def _dots(rows: list[Record], metric: str, data: str, base: str, style: Style) -> Figure:
    plot = empty_plot(metric_title(metric), "", height=90 + 26 * len(rows))
    plot.update_yaxes(autorange="reversed", type="category")
    for row in rows:
        half = [0.0] if row["low"] is None else [(row["high"] - row["low"]) / 2]
        plot.add_trace(
            go.Scatter(
                x=[row["mean"]],
                y=[shown(row["label"])],
                mode="markers",
                error_x={"type": "data", "array": half, "color": style.colour(row["label"])},
                hovertemplate="%{y}: %{x:.4f}",
                **style.trace(row["label"]),
            )
        )
    title = f"{metric_title(metric)}: {data}, {base}"
    alt = f"Mean {metric_title(metric)} of each row on {data}, with intervals: " + _listed(rows, "label", "mean")
    return Figure(name_of("summary", metric, data, base), title, alt, plot)


def _listed(rows: list[Record], name: str, value: str) -> str:
    return ", ".join(f"{row[name]} {number(row[value])}" for row in rows) + "."


def _data_grid(rows: list[Record], data: str) -> TextTable:
    cells = [
        [
            str(row["span"]),
            row["start"],
            f"{row['interactions']:,}",
            f"{row['users']:,}",
            f"{row['new_users']:.1%}",
            f"{row['items']:,}",
            f"{row['new_items']:.1%}",
            "-" if row["repeats"] is None else f"{row['repeats']:.1%}",
        ]
        for row in rows
    ]
    totals = ["all", "", f"{sum(column(rows, 'interactions')):,}", f"{rows[-1]['users_so_far']:,}", ""]
    cells.append([*totals, f"{rows[-1]['items']:,}", "", ""])
    columns = ["span", "from", "interactions", "users", "new users", "items so far", "with new items", "repeats"]
    caption = (
        "new users: of the span's users; with new items, repeats: shares of the span's interactions; a repeat is with "
        "an item that the user met in an earlier span."
    )
    return TextTable(f"The data: {data}", columns, cells, caption=caption, texts=2)


def _interactions(rows: list[Record], data: str) -> Figure:
    plot = whole_numbers(empty_plot("span", "interactions"))
    starts = column(rows, "start")
    hover = "span %{x} from %{customdata}: %{y:,} interactions<extra></extra>"
    plot.add_trace(
        go.Bar(
            x=column(rows, "span"),
            y=column(rows, "interactions"),
            customdata=starts,
            hovertemplate=hover,
            marker={"color": COLOURS[0]},
        )
    )
    alt = f"Interactions of each span of {data}; span 0 is for pre-training."
    return Figure(name_of("data", "interactions", data), f"Interactions by span: {data}", alt, plot)


def _shares(rows: list[Record], data: str) -> Figure:
    plot = whole_numbers(empty_plot("span", "share", showlegend=True))
    later = [row for row in rows if row["span"]]
    for place, (key, name) in enumerate(_SHARES.items()):
        plot.add_trace(
            go.Scatter(
                x=column(later, "span"),
                y=column(later, key),
                name=name,
                mode="lines+markers",
                line={"color": COLOURS[place]},
                hovertemplate="span %{x}: %{y:.1%}",
            )
        )
    plot.update_yaxes(tickformat=".0%", rangemode="tozero")
    alt = f"Shares of new users, of interactions with new items and of repeats by span of {data}."
    return Figure(name_of("data", "shares", data), f"What is new in each span: {data}", alt, plot)
