"""Draws Tables III to V of the paper, ranks, cost, and the rows of ablation and sensitivity (Fig. 5 and 6)."""

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
    name_of,
    number,
    shown,
)

_RATES = {"hr": "HR", "ndcg": "NDCG"}
_NAMED = 8  # points of a figure, which have their names next to them


def comparison(tables: Tables, style: Style) -> list[Block]:
    """Draws the section.

    Args:
        tables: as `dist_imsr.report.tables.comparison.comparison` computes them.
        style: of labels.
    """
    blocks = list[Block]()
    if "comparison" in tables:
        for (data, life_long), rows in by(tables["comparison"], "data", "life_long"):
            blocks.append(_quality(rows, f"Table {'IV, life-long models' if life_long else 'III'}: {data}"))
    for (data,), rows in by(tables["comparison_times"], "data"):
        blocks.append(_times(rows, data))
    if "comparison_ranks" in tables:
        blocks.append(_ranks(tables["comparison_ranks"].to_pylist(), style))
    for (data, base), rows in by(tables["comparison_cost"], "data", "base"):
        blocks.append(_cost(rows, data, base, style))
    return blocks


def _quality(rows: list[Record], title: str) -> TextTable:
    """Table III or IV: a cell is marked by its corrected p against each tested row."""
    tests = [name.removeprefix("holm_users_hr_vs_") for name in rows[0] if name.startswith("holm_users_hr_vs_")]
    columns = ["base", "row", "HR", "NDCG", "HR unseen", "K", *(f"p, {other}" for other in tests), "seeds"]
    cells, classes, labels = [], {}, []
    anchors = {(row["base"], row["strategy"]): row for row in rows}
    for place, row in enumerate(rows):
        rates = [_rate(row, name) for name in ("hr", "ndcg", "unseen")]
        line = [row["base"], row["strategy"], *rates, number(row["interests"], 2)]
        for other in tests:
            values = [row.get(f"holm_users_{name}_vs_{other}") for name in _RATES]
            line.append(" / ".join("-" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}" for p in values))
            anchor = anchors.get((row["base"], other)) or next((one for one in rows if one["strategy"] == other), None)
            known = [p for p in values if p is not None]
            if anchor is not None and anchor["hr"] is not None and known and max(known) < 0.05:
                classes[place, len(line) - 1] = "better" if row["hr"] > anchor["hr"] else "worse"
        cells.append([*line, str(row["seeds"])])
        labels.append(row["strategy"])
    caption = (
        "Per cent: means over spans, ± the deviation over seeds. p: HR / NDCG in paired t-tests over users, corrected "
        "by Holm's method; green (▲): both below 0.05 and better; red (▼): worse."
    )
    for (place, at), kind in classes.items():
        cells[place][at] += " ▲" if kind == "better" else " ▼"
    return TextTable(title, columns, cells, labels, classes, caption, texts=2)


def _times(rows: list[Record], data: str) -> TextTable:
    """Table V."""
    spans = sorted({row["span"] for row in rows})
    cells, labels = [], []
    for base, label in dict.fromkeys((row["base"], row["label"]) for row in rows):
        own = {row["span"]: row for row in rows if (row["base"], row["label"]) == (base, label)}
        test = sum(row["test_seconds"] for row in own.values()) / len(own)
        seconds = [own[span]["seconds"] if span in own else None for span in spans]
        cells.append([base, label, *(number(one, 2) for one in seconds), number(test, 2)])
        labels.append(label)
    columns = ["base", "row", *(f"t={span}" for span in spans), "test"]
    caption = "Seconds of training in each span, and of a test on average; means over seeds."
    return TextTable(f"Table V: {data}", columns, cells, labels, caption=caption, texts=2)


def _rate(row: Record, name: str) -> str:
    deviation = "" if row[f"{name}_std"] is None else f" ± {row[f'{name}_std']:.2f}"
    return f"{number(row[name], 2)}{deviation}"


def _ranks(rows: list[Record], style: Style) -> Figure:
    rows = sorted(rows, key=lambda row: row["rank"])
    difference, blocks = rows[0]["difference"], rows[0]["blocks"]
    plot = empty_plot("mean rank by HR (1 is best)", "", height=110 + 26 * len(rows))
    plot.update_yaxes(autorange="reversed", type="category")
    for row in rows:
        plot.add_trace(
            go.Scatter(
                x=[row["rank"]],
                y=[shown(row["label"])],
                mode="markers",
                error_x={"type": "data", "array": [difference / 2], "color": style.colour(row["label"])},
                hovertemplate="%{y}: %{x:.2f}",
                **style.trace(row["label"]),
            )
        )
    title = f"Mean ranks over {blocks} data sets and base models"
    alt = (
        f"{title}; bars are half of the critical difference {difference:.2f} of Nemenyi's test at 0.05 to each side: "
        "rows whose bars overlap are not told apart."
    )
    return Figure("comparison_ranks", f"{title} (rows whose bars overlap are not told apart)", alt, plot)


def _cost(rows: list[Record], data: str, base: str, style: Style) -> Figure:
    plot = empty_plot("seconds of training in the last span", "HR")
    front = sorted((row for row in rows if row["front"]), key=lambda row: row["seconds"])
    plot.add_trace(
        go.Scatter(
            x=column(front, "seconds"),
            y=column(front, "hr"),
            mode="lines",
            line={"color": "#999999", "dash": "dot", "shape": "hv"},
            hoverinfo="skip",
        )
    )
    mode = "markers+text" if len(rows) <= _NAMED else "markers"
    for row in rows:
        plot.add_trace(
            go.Scatter(
                x=[row["seconds"]],
                y=[row["hr"]],
                mode=mode,
                text=[shown(row["label"])],
                textposition="top center",
                textfont={"size": 10},
                hovertemplate="%{x:.2f} s: %{y:.4f}",
                **style.trace(row["label"]),
            )
        )
    title = f"Quality against cost: {data}, {base}"
    alt = "HR by seconds of training in the last span; the dotted line joins rows that none beats in both."
    return Figure(name_of("comparison", "cost", data, base), title, f"{title}. {alt}", plot)


def ablation(tables: Tables, style: Style) -> list[Block]:
    """Draws the section.

    Args:
        tables: as `dist_imsr.report.tables.comparison.ablation` computes them.
        style: of labels.
    """
    blocks = list[Block]()
    for (data, base), rows in by(tables["ablation"], "data", "base"):
        for rate, text in _RATES.items():
            plot = empty_plot("", f"{text}, per cent")
            for row in rows:
                plot.add_trace(
                    go.Bar(
                        x=[shown(row["label"])],
                        y=[row[rate]],
                        error_y=_bar([row[f"{rate}_std"]]),
                        hovertemplate="%{x}: %{y:.2f}",
                        marker=style.bar(row["label"]),
                        **style.member(row["label"]),
                    )
                )
            low = min(row[rate] for row in rows)
            high = max(row[rate] + (row[f"{rate}_std"] or 0.0) for row in rows)
            plot.update_xaxes(type="category")
            plot.update_yaxes(range=[max(0.0, low - (high - low)), high + 0.1 * (high - low or 1.0)])
            title = f"Parts of IMSR, {text}: {data}, {base}"
            alt = f"{title}: " + ", ".join(f"{row['label']} {row[rate]:.2f}" for row in rows) + " per cent."
            blocks.append(Figure(name_of("ablation", rate, data, base), title, alt, plot))
    return blocks


def sensitivity(tables: Tables, style: Style) -> list[Block]:
    """Draws the section.

    Args:
        tables: as `dist_imsr.report.tables.comparison.sensitivity` computes them.
        style: of labels.
    """
    blocks = list[Block]()
    for (base, key), rows in by(tables["sensitivity"], "base", "key"):
        for rate, text in _RATES.items():
            plot = empty_plot(key, f"{text} relative to the default")
            for place, data in enumerate(dict.fromkeys(row["data"] for row in rows)):
                own = sorted((row for row in rows if row["data"] == data), key=lambda row: row["order"])
                default = next((row[rate] for row in own if not row["changed"]), None)
                if not default:  # it failed, and there is nothing to be relative to
                    continue
                plot.add_trace(
                    go.Scatter(
                        x=column(own, "value"),
                        y=[row[rate] / default for row in own],
                        customdata=[[row[rate], row["interests"]] for row in own],
                        error_y=_bar([row[f"{rate}_std"] and row[f"{rate}_std"] / default for row in own]),
                        mode="lines+markers",
                        name=shown(data),
                        line={"color": COLOURS[place % len(COLOURS)]},
                        hovertemplate=f"{key} %{{x}}: %{{customdata[0]:.2f}} per cent, K %{{customdata[1]:.2f}}",
                    )
                )
            plot.update_xaxes(type="category")
            plot.update_layout(showlegend=True)
            title = f"Sensitivity to {key}, {text}: {base}"
            blocks.append(Figure(name_of("sensitivity", key, rate, base), title, f"{title}, on each data set.", plot))
    return blocks


def _bar(deviations: list[float | None]) -> Record | None:
    """Error bars; none for a single seed."""
    return None if None in deviations else {"type": "data", "array": deviations}
