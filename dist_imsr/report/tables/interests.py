"""How interests grow, and what new ones are like (Fig. 3 of the paper)."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from dist_imsr.report.sources import Missing, Run, Sources
from dist_imsr.report.tables.exports import ExportedInterests, item_vectors, items_of
from dist_imsr.report.tables.statistics import histogram

USERS = 300
"""Of each run and span, in the correlations: these many, evenly spaced in the order of ids."""
_EVENTS = ("puzzled_users", "interests_created", "interests_kept", "interests_trimmed", "interests_refused")


def interests(sources: Sources) -> dict[str, pa.Table]:
    """Computes the section; distributions are those of each label's run with the smallest seed.

    Args:
        sources: runs and comparison.

    Returns:
        ``interests_mean``: data, base, label, span, mean (over seeds), median, p95 and cosine (of existing interests
        before and after the span). ``interests_events``: .., event, count. ``interests_users``: .., interests, users:
        how many users have so many. ``interests_fit``: .., low, high, count (of users), c1. ``interests_norms``: ..,
        low, high, count (of kept new interests), c2, trimmed and their mean_trimmed.
        ``interests_correlations``: .., projected, low, high, count (of pairs of a new and an existing interest).

    Raises:
        Missing: if no run has trained a span after pre-training.
    """
    rows = {"interests_mean": _means(sources), "interests_events": _events(sources)}
    if not rows["interests_mean"]:
        raise Missing("no span after pre-training has been trained and tested yet")
    exported = (("users", _users), ("fit", _fit), ("norms", _norms), ("correlations", _correlations))
    for name, compute in exported:
        rows[f"interests_{name}"] = _of_runs(sources, compute)
    return {name: pa.Table.from_pylist(found) for name, found in rows.items() if found}


def _of_runs(sources: Sources, compute: Callable[[Run], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The records of all runs that can be read."""
    rows = []
    for run in sources.first_runs(needed="exports"):
        try:
            rows += compute(run)
        except Missing as reason:
            sources.note(reason)
    return rows


def _means(sources: Sources) -> list[dict[str, Any]]:
    found = defaultdict(list)
    for record in sources.records:
        if record.get("interests_mean") is not None:
            found[record["data"], record["base"], record["label"], record["span"]].append(record)

    def mean(records: list[dict[str, Any]], key: str) -> float | None:
        values = [record[key] for record in records if record.get(key) is not None]
        return float(np.mean(values)) if values else None

    return [
        {"data": data, "base": base, "label": label, "span": span}
        | {"mean": mean(records, "interests_mean"), "median": mean(records, "interests_p50")}
        | {"p95": mean(records, "interests_p95"), "cosine": mean(records, "existing_cosine")}
        for (data, base, label, span), records in found.items()
    ]


def _events(sources: Sources) -> list[dict[str, Any]]:
    return [
        run.columns | {"span": line["span"], "event": event, "count": line[event]}
        for run in sources.first_runs()
        for line in run.lines
        for event in _EVENTS
        if line.get(event) is not None
    ]


def _users(run: Run) -> list[dict[str, Any]]:
    rows = []
    for span in run.exported:
        numbers, users = np.unique(ExportedInterests.of(run, span).places[2], return_counts=True)
        for number, count in zip(numbers, users, strict=True):
            rows.append(run.columns | {"span": span, "interests": int(number), "users": int(count)})
    return rows


def _fit(run: Run) -> list[dict[str, Any]]:
    fits = {span: _last_fits(run, span) for span in run.exported}
    fits = {span: fit[np.isfinite(fit)] for span, fit in fits.items()}
    fits = {span: fit for span, fit in fits.items() if len(fit)}
    if not fits:
        return []
    low, high = np.quantile(np.concatenate(list(fits.values())), [0.005, 0.995])
    c1 = run.imsr("detector", "c1")
    return [
        row for span, fit in fits.items() for row in histogram(fit, low, high, run.columns | {"span": span, "c1": c1})
    ]


def _last_fits(run: Run, span: int) -> np.ndarray:
    """The fit of each user: of the last detection, where there was one in each epoch."""
    found = run.parts(span, "detections")
    users, fits = found["user"].to_numpy(), found["fit"].to_numpy().astype(np.float64)
    _, places = np.unique(users[::-1], return_index=True)
    return fits[::-1][places]


def _norms(run: Run) -> list[dict[str, Any]]:
    if run.imsr("trimmer", "c2") is None:
        return []
    lines = {line["span"]: line for line in run.lines}
    norms = {}
    for span in run.exported:
        found = ExportedInterests.of(run, span)
        known = set(ExportedInterests.of(run, span - 1).users.tolist()) if span - 1 in run.exported else set[int]()
        new = (found.born == span) & np.fromiter(
            (user in known for user in found.users.tolist()), bool, len(found.born)
        )
        if new.any():  # those of new users are no discoveries
            norms[span] = np.linalg.norm(found.vectors[new].astype(np.float64), axis=1)
    highest = max((values.max() for values in norms.values()), default=0.0)
    rows = []
    for span, values in norms.items():
        line = lines.get(span, {})
        place = {
            "span": span,
            "c2": run.imsr("trimmer", "c2"),
            "trimmed": line.get("interests_trimmed"),
            "mean_trimmed": line.get("norm_trimmed"),
        }
        rows += histogram(values, 0.0, float(highest), run.columns | place)
    return rows


def _correlations(run: Run) -> list[dict[str, Any]]:
    rows = []
    for span in run.exported[1:]:
        values = np.array(list(correlations(run, span)), dtype=np.float64)
        if len(values):
            place = run.columns | {"span": span, "projected": bool(run.imsr("trimmer", "project"))}
            rows += histogram(values, -1.0, 1.0, place)
    return rows


def correlations(run: Run, span: int) -> Iterator[float]:
    """Pearson's correlation of a new and an existing interest, over the dot products with the user's items of the span.

    Args:
        run: with exported spans.
        span: an exported span.

    Yields:
        A value for each pair of `USERS` users who have both kinds and at least three different items in the span.

    Raises:
        Missing: if the exports cannot be read.
    """
    found, items = ExportedInterests.of(run, span), item_vectors(run, span)
    users, starts, counts = found.places
    new = np.add.reduceat(found.born == span, starts) if len(starts) else np.empty(0, np.int64)
    mixed = np.flatnonzero((new > 0) & (new < counts))
    chosen = mixed[np.linspace(0, len(mixed) - 1, min(USERS, len(mixed))).astype(np.int64)] if len(mixed) else mixed
    for place in chosen:
        own = slice(starts[place], starts[place] + counts[place])
        seen = items_of(run.dataset, span, int(users[place]))
        if len(np.unique(seen)) < 3:
            continue
        products = found.vectors[own].astype(np.float64) @ items[seen].T.astype(np.float64)  # [K, n]
        products -= products.mean(1, keepdims=True)
        products /= np.linalg.norm(products, axis=1, keepdims=True).clip(1e-12)
        born = found.born[own]
        yield from (products[born == span] @ products[born < span].T).ravel().tolist()
