"""Quality by kinds of targets and of users (Fig. 7a of the paper)."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dist_imsr.data.dataset import Dataset
from dist_imsr.report.sources import Missing, Run, Sources
from dist_imsr.report.tables.exports import ExportedInterests

_NEED = "test with --eval.per_user true"
_PARTS = {"all": "", "existing": "_existing", "new": "_new"}


def groups(sources: Sources) -> dict[str, pa.Table]:
    """Computes the section.

    Args:
        sources: runs and comparison.

    Returns:
        ``groups``: data, base, label, by (items, activity, interests or detection), group, order, tests
        (how many users were tested; null for items), hr, ndcg: means over tests of all spans, of each label's run with
        the smallest seed; those by items are means over spans.

    Raises:
        Missing: if nothing has been tested.
    """
    spans = {group: sources.shared_spans(group) for group in sources.groups}
    runs = [(run, [one for one in run.lines if one["test_span"] in spans[run.group]]) for run in sources.first_runs()]
    rows = [row for run, lines in runs for row in _by_items(run, lines, sources.top)]
    if not rows:
        raise Missing("no span has been tested yet")
    for run, lines in runs:
        try:
            rows += _by_users(run, lines, sources.top)
        except Missing as reason:
            sources.note(reason)
    return {"groups": pa.Table.from_pylist(rows)}


def _by_items(run: Run, lines: list[dict[str, Any]], top: int) -> list[dict[str, Any]]:
    rows = []
    for order, (group, suffix) in enumerate(_PARTS.items()):
        means: dict[str, Any] = {}
        for name in ("hr", "ndcg"):
            values = [line.get(f"{name}@{top}{suffix}") for line in lines]
            known = [value for value in values if value is not None]
            means[name] = float(np.mean(known)) if known else None
        if means["hr"] is not None:
            rows.append(run.columns | {"by": "items", "group": group, "order": order, "tests": None} | means)
    return rows


def _by_users(run: Run, lines: list[dict[str, Any]], top: int) -> list[dict[str, Any]]:
    """The records by kinds of users.

    Raises:
        Missing: without files of users, or the data.
    """
    found: defaultdict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = defaultdict(list)
    for line in lines:
        span, path = line["span"], run.users_file(line["test_span"])
        if not path.is_file():
            raise Missing(f"{run.folder} has no metrics of users: {_NEED}")
        table = pq.read_table(path)
        users = run.dataset.user_ids(table["user"].combine_chunks())
        known = users >= 0  # others were forgotten since
        users, hr, ndcg = (
            one[known] for one in (users, *(table[f"{name}@{top}"].to_numpy() for name in ("hr", "ndcg")))
        )
        found["activity"].append((_activity(run.dataset, span, users), hr, ndcg))
        if span in run.exported:
            found["interests"].append((_interests(run, span, users), hr, ndcg))
            puzzled = _puzzled(run, span)
            if puzzled is not None:
                found["detection"].append((np.isin(users, puzzled), hr, ndcg))
    rows = []
    for by, parts in found.items():
        values, hr, ndcg = (np.concatenate(column) for column in zip(*parts, strict=True))
        for order, group, chosen in _cut(by, values):
            if chosen.any():
                means = {"hr": float(hr[chosen].mean()), "ndcg": float(ndcg[chosen].mean())}
                rows.append(
                    run.columns | {"by": by, "group": group, "order": order, "tests": int(chosen.sum())} | means
                )
    return rows


def _activity(dataset: Dataset, span: int, users: np.ndarray) -> np.ndarray:
    """The number of interactions of users up to a span.

    Raises:
        Missing: if rows are retired.
    """
    if dataset.first_kept:
        raise Missing(dataset.retired_rows)
    counts = np.zeros(len(users), np.int64)
    for bucket in range(dataset.buckets):
        own = np.flatnonzero(users % dataset.buckets == bucket)
        for earlier in range(span + 1):
            owners, _ = dataset.sequences(earlier, bucket).of(users[own])
            counts[own] += np.bincount(owners, minlength=len(own))
    return counts


def _interests(run: Run, span: int, users: np.ndarray) -> np.ndarray:
    known, _, counts = ExportedInterests.of(run, span).places
    place = np.searchsorted(known, users).clip(0, max(len(known) - 1, 0))
    return np.where(known[place] == users, counts[place], 0) if len(known) else np.zeros(len(users), np.int64)


def _puzzled(run: Run, span: int) -> np.ndarray | None:
    """The users whom the detector found puzzled in a span; None if it did not run."""
    table = run.parts(span, "detections")
    return table.filter(table["puzzled"])["user"].to_numpy() if len(table) else None


def _cut(by: str, values: np.ndarray) -> Iterator[tuple[int, str, np.ndarray]]:
    """The groups of a kind, each with its order and a mask of its tests: quarters of activity, numbers of interests."""
    if by == "detection":
        yield 0, "not puzzled", ~values
        yield 1, "puzzled", values
    elif by == "activity":
        edges = np.unique(np.quantile(values, [0, 0.25, 0.5, 0.75, 1.0], method="inverted_cdf"))
        lows = [edges[0], *(edges[1:-1] + 1)] if len(edges) > 1 else [edges[0]]
        for low, high in zip(lows, edges[1:] if len(edges) > 1 else edges, strict=True):
            yield int(low), f"{low}-{high}", (low <= values) & (values <= high)
    else:
        numbers, counts = np.unique(values, return_counts=True)
        common = numbers[counts >= 0.05 * len(values)]
        for number in common:
            yield int(number), str(number), values == number
        rest = ~np.isin(values, common)
        yield int(numbers.max()) + 1, "others", rest
