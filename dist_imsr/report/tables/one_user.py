"""One user's interests through the spans (Fig. 2, 7b and 7c of the paper)."""

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.manifold import TSNE

from dist_imsr.data.dataset import Dataset
from dist_imsr.report.sources import Missing, Run, Sources
from dist_imsr.report.tables.exports import EXPORT_EVERY, ExportedInterests, exported_spans, item_vectors, items_of

ITEMS = 15
"""Of a heatmap: the latest distinct ones."""


def one_user(sources: Sources) -> dict[str, pa.Table]:
    """Computes the section for one run: the one with most exported spans, of these the one with most interests a user.

    Args:
        sources: runs and comparison.

    Returns:
        ``one_user_map``: user, label, span, slot, born, x, y: t-SNE of the user's interests after each exported span.
        ``one_user_targets``: slot, born, item, title, product: interests after the last exported span against the
        user's latest items of the span after it, or of the same one. ``one_user_items``: when (before or after), span,
        slot, born, item, title, product: the items of the span that last gave the user a new interest.

    Raises:
        Missing: if fewer than two spans of every run are exported.
    """
    runs = [run for run in sources.first_runs("exports") if len(run.exported) > 1]
    if not runs:
        raise Missing(f"no run has two exported spans: {EXPORT_EVERY}")

    def rank(run: Run) -> tuple[int, float]:
        interests = run.lines[-1]["interests_mean"] if run.lines else 0.0
        return len(run.exported), interests or 0.0

    run = max(runs, key=rank)
    spans = exported_spans(run, 2)
    last = ExportedInterests.of(run, spans[-1])
    user = choose_user(run.dataset, spans[-1], last, sources.config.user)
    states = {span: ExportedInterests.of(run, span).of_user(user) for span in spans[:-1]} | {
        spans[-1]: last.of_user(user)
    }
    columns = run.columns | {"user": str(run.dataset.raw_ids("users", np.array([user]))[0].as_py())}
    found = {
        "one_user_map": _map(states, sources.config.seed),
        "one_user_targets": _targets(run, states, user),
        "one_user_items": _items(run, states, user),
    }
    return {name: pa.Table.from_pylist([columns | row for row in rows]) for name, rows in found.items() if rows}


def choose_user(dataset: Dataset, span: int, interests: ExportedInterests, named: str | None) -> int:
    """The id of the user to show.

    Args:
        dataset: has the raw ids.
        span: the last exported one.
        interests: after it.
        named: a raw id; None for the user with most interests; of these the one with most interactions in the span,
            then the smallest id.

    Raises:
        ValueError: if no user of this raw id has interests.
        Missing: if nobody has.
    """
    users, _, counts = interests.places
    if named is not None:
        try:
            user = int(dataset.user_ids(pa.array([named]).cast(dataset.raw_id_type("users")))[0])
        except pa.ArrowInvalid:  # no number
            user = -1
        if user not in users:
            raise ValueError(f"user: {named} has no interests after span {span}; name a user of the log by its raw id")
        return user
    known = ~np.isin(users, dataset.forgotten)
    if not known.any():
        raise Missing(f"no user has interests after span {span}")
    richest = users[known & (counts == counts[known].max())]
    active = np.zeros(len(richest), np.int64)
    for bucket in range(dataset.buckets if not dataset.entries[span].retired else 0):
        own = np.flatnonzero(richest % dataset.buckets == bucket)
        owners, _ = dataset.sequences(span, bucket).of(richest[own])
        active[own] = np.bincount(owners, minlength=len(own))
    return int(richest[active.argmax()])


def _map(states: dict[int, ExportedInterests], seed: int) -> list[dict[str, Any]]:
    rows, vectors = [], []
    for span, state in states.items():
        rows += [{"span": span, "slot": slot, "born": int(born)} for slot, born in enumerate(state.born)]
        vectors.append(state.vectors)
    points = np.concatenate(vectors)
    if len(points) < 4:  # t-SNE needs neighbours
        return []
    points = points / np.linalg.norm(points, axis=1, keepdims=True).clip(1e-12)
    places = TSNE(perplexity=min(10.0, (len(points) - 1) / 3), init="pca", random_state=seed).fit_transform(points)
    return [row | {"x": float(x), "y": float(y)} for row, (x, y) in zip(rows, places, strict=True)]


def _latest(items: np.ndarray) -> np.ndarray:
    """The latest distinct items, at most `ITEMS`, in time order."""
    _, places = np.unique(items[::-1], return_index=True)
    return items[::-1][np.sort(places)[:ITEMS]][::-1]


def _products(
    run: Run, span: int, state: ExportedInterests, items: np.ndarray, keys: dict[str, Any]
) -> list[dict[str, Any]]:
    """The dot products of a user's interests and items, both as they were after a span."""
    embeddings = item_vectors(run, span)
    items = items[items < len(embeddings)]  # later items have no embedding yet
    products = state.vectors.astype(np.float64) @ embeddings[items].T.astype(np.float64)
    raw = run.dataset.raw_ids("items", items).to_pylist()
    titles = run.dataset.titles(items)
    return [
        keys
        | {"slot": slot, "born": int(born), "item": str(raw[place]), "title": titles[place], "product": float(product)}
        for slot, (born, row) in enumerate(zip(state.born, products, strict=True))
        for place, product in enumerate(row)
    ]


def _targets(run: Run, states: dict[int, ExportedInterests], user: int) -> list[dict[str, Any]]:
    last = max(states)
    after = items_of(run.dataset, last + 1, user) if last + 1 < run.dataset.spans else np.empty(0, np.int64)
    span, items = (last + 1, after) if len(after) else (last, items_of(run.dataset, last, user))
    return _products(run, last, states[last], _latest(items), {"span": span})


def _items(run: Run, states: dict[int, ExportedInterests], user: int) -> list[dict[str, Any]]:
    spans = sorted(states)
    pairs = [(before, after) for before, after in itertools.pairwise(spans) if after == before + 1]
    born = {span: (states[span].born == span).any() for span in spans}
    known = [pair for pair in pairs if len(items_of(run.dataset, pair[1], user))]
    chosen = [pair for pair in known if born[pair[1]]] or known
    if not chosen:
        return []
    before, after = chosen[-1]
    items = _latest(items_of(run.dataset, after, user))
    rows = _products(run, before, states[before], items, {"when": "before", "span": after})
    return rows + _products(run, after, states[after], items, {"when": "after", "span": after})
