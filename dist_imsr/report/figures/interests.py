"""Draws how interests grow (Fig. 3 of the paper)."""

from collections import defaultdict
from collections.abc import Callable

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from dist_imsr.report.figures.style import (
    COLOURS,
    EACH,
    SCALE,
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
    vertical,
    whole_numbers,
)

_EVENTS = {
    "puzzled_users": "puzzled users",
    "interests_created": "created",
    "interests_kept": "kept",
    "interests_trimmed": "trimmed",
    "interests_refused": "refused",
}
Draw = Callable[[list[Record], str, str, str, Style], Figure]


def interests(tables: Tables, style: Style) -> list[Block]:
    """Draws the section.

    Args:
        tables: as `dist_imsr.report.tables.interests.interests` computes them.
        style: of labels.

    Returns:
        The figures of all labels together, then those of each one.
    """
    blocks = list[Block]()
    for (data, base), rows in by(tables["interests_mean"], "data", "base"):
        blocks.append(_lines(rows, "mean", "interests a user", data, base, style))
        if any(row["cosine"] is not None for row in rows):
            blocks.append(_lines(rows, "cosine", "cosine before and after", data, base, style))
    if "interests_correlations" in tables:
        for (data, base), rows in by(tables["interests_correlations"], "data", "base"):
            blocks.append(_correlations(rows, data, base, style))
    if "interests_events" in tables:
        for (data, base), rows in by(tables["interests_events"], "data", "base"):
            grown = {row["label"] for row in rows if row["count"]}
            blocks += _all_events([row for row in rows if row["label"] in grown], data, base)
    draws: dict[str, Draw] = {"users": _users, "fit": _fit, "norms": _norms}
    for name, draw in draws.items():
        if f"interests_{name}" in tables:
            for (data, base), rows in by(tables[f"interests_{name}"], "data", "base"):
                labels = _grown(rows) if name == "users" else list(dict.fromkeys(row["label"] for row in rows))
                for label in labels[:EACH]:
                    blocks.append(draw([row for row in rows if row["label"] == label], data, base, label, style))
    return blocks


def _grown(rows: list[Record]) -> list[str]:
    """The labels whose users differ in their number of interests."""
    numbers: defaultdict[str, set[int]] = defaultdict(set)
    for row in rows:
        numbers[row["label"]].add(row["interests"])
    return [label for label, found in numbers.items() if len(found) > 1]


def _lines(rows: list[Record], key: str, what: str, data: str, base: str, style: Style) -> Figure:
    plot = whole_numbers(empty_plot("span", what))
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label and row[key] is not None]
        if own:
            plot.add_trace(
                go.Scatter(
                    x=column(own, "span"),
                    y=column(own, key),
                    mode="lines+markers",
                    hovertemplate="after span %{x}: %{y:.4f}",
                    **style.trace(label),
                )
            )
    title = "Interests a user" if key == "mean" else "How far existing interests stay where they were"
    alt = f"{title}, by span and strategy, on {data} with {base}."
    return Figure(name_of("interests", key, data, base), f"{title}: {data}, {base}", alt, plot)


def _all_events(rows: list[Record], data: str, base: str) -> list[Block]:
    labels = list(dict.fromkeys(row["label"] for row in rows))
    if len(labels) > EACH:
        return [_events(rows, "label", f"{data}, {base}", name_of("interests", "events", data, base))]
    each = {label: [row for row in rows if row["label"] == label] for label in labels}
    return [
        _events(own, "span", f"{label}: {data}, {base}", name_of("interests", "events", data, base, label))
        for label, own in each.items()
    ]


def _events(rows: list[Record], key: str, title: str, name: str) -> Figure:
    plot = empty_plot("span" if key == "span" else "", "count", showlegend=True, barmode="group")
    places = list(dict.fromkeys(row[key] for row in rows))
    for at, (event, text) in enumerate(_EVENTS.items()):
        plot.add_trace(
            go.Bar(
                x=[shown(place) if isinstance(place, str) else place for place in places],
                y=[
                    sum(row["count"] for row in rows if row["event"] == event and row[key] == place) for place in places
                ],
                name=text,
                meta=rows[0]["label"] if key == "span" else None,
                marker={"color": COLOURS[at]},
                hovertemplate="%{x}: %{y:,}",
            )
        )
    plot = whole_numbers(plot) if key == "span" else plot.update_xaxes(type="category")
    alt = "Puzzled users, and new interests created, kept, trimmed and refused, "
    alt += f"{'in each span' if key == 'span' else 'over all spans'}, {title}."
    return Figure(name, f"New interests, {title}", alt, plot)


def _users(rows: list[Record], data: str, base: str, label: str, style: Style) -> Figure:
    plot = whole_numbers(empty_plot("span", "share of users", showlegend=True, barmode="stack"))
    totals: defaultdict[int, int] = defaultdict(int)
    for row in rows:
        totals[row["span"]] += row["users"]
    numbers = sorted({row["interests"] for row in rows})
    shades = sample_colorscale(SCALE, [place / max(len(numbers) - 1, 1) for place in range(len(numbers))])
    for place, number in enumerate(numbers):
        own = [row for row in rows if row["interests"] == number]
        plot.add_trace(
            go.Bar(
                x=column(own, "span"),
                y=[row["users"] / totals[row["span"]] for row in own],
                name=f"{number}",
                meta=label,
                customdata=column(own, "users"),
                marker={"color": shades[place]},
                hovertemplate=f"{number} interests, span %{{x}}: %{{customdata:,}} users, %{{y:.1%}}<extra></extra>",
            )
        )
    plot.update_yaxes(tickformat=".0%")
    alt = f"Shares of users with each number of interests, after each span, with {label} on {data}."
    return Figure(
        name_of("interests", "users", data, base, label), f"Users by interests, {label}: {data}, {base}", alt, plot
    )


def _outlines(plot: go.Figure, rows: list[Record], label: str, what: str) -> None:
    """Adds the outline of each span's histogram."""
    for place, span in enumerate(dict.fromkeys(row["span"] for row in rows)):
        own = [row for row in rows if row["span"] == span]
        plot.add_trace(
            go.Scatter(
                x=[(row["low"] + row["high"]) / 2 for row in own],
                y=column(own, "count"),
                mode="lines",
                name=f"span {span}",
                meta=label,
                line={"color": COLOURS[place % len(COLOURS)], "shape": "hvh"},
                hovertemplate=f"{what} %{{x:.3f}}: %{{y:,}}",
            )
        )


def _fit(rows: list[Record], data: str, base: str, label: str, style: Style) -> Figure:
    plot = empty_plot("fit", "users", showlegend=True)
    _outlines(plot, rows, label, "fit")
    if rows[0]["c1"] is not None:
        vertical(plot, rows[0]["c1"], "c1")
    alt = f"How many users have which fit in each span, with {label} on {data}; below the line c1 they are puzzled."
    return Figure(name_of("interests", "fit", data, base, label), f"Fit against c1, {label}: {data}, {base}", alt, plot)


def _norms(rows: list[Record], data: str, base: str, label: str, style: Style) -> Figure:
    plot = empty_plot("norm after projection", "new interests", showlegend=True)
    _outlines(plot, rows, label, "norm")
    if rows[0]["c2"] is not None:
        vertical(plot, rows[0]["c2"], "c2")
    trimmed = {row["span"]: row["trimmed"] for row in rows if row["trimmed"]}
    text = ", ".join(f"{count:,} in span {span}" for span, count in trimmed.items()) or "none"
    alt = f"Norms of new interests that were kept, by span, with {label} on {data}. Trimmed, below c2: {text}."
    return Figure(
        name_of("interests", "norms", data, base, label),
        f"Norms of kept new interests, {label}: {data}, {base} (trimmed: {text})",
        alt,
        plot,
    )


def _correlations(rows: list[Record], data: str, base: str, style: Style) -> Figure:
    plot = empty_plot("correlation of a new and an existing interest", "share of pairs")
    for label in dict.fromkeys(row["label"] for row in rows):
        counts: defaultdict[float, int] = defaultdict(int)
        for row in rows:
            if row["label"] == label:
                counts[(row["low"] + row["high"]) / 2] += row["count"]
        total = max(sum(counts.values()), 1)
        projected = next(row["projected"] for row in rows if row["label"] == label)
        plot.add_trace(
            go.Scatter(
                x=list(counts),
                y=[count / total for count in counts.values()],
                mode="lines",
                **style.member(label),
                line={"color": style.colour(label), "shape": "hvh", "dash": "solid" if projected else "dash"},
                hovertemplate="%{x:.2f}: %{y:.1%}",
            )
        )
    plot.update_yaxes(tickformat=".0%")
    alt = f"Correlations between new and existing interests on {data}; dashed: runs without the projection."
    title = f"Are new interests like existing ones? {data}, {base} (dashed: no projection)"
    return Figure(name_of("interests", "correlations", data, base), title, alt, plot)
