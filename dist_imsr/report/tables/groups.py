"""Quality by kinds of targets and of users (Fig. 7a of the paper)."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

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
        ``groups``: data, base, label, by (items, activity, interests or detection), group, place (its order), tests
        (how many users were tested; null for items), hr, ndcg: means over tests of all spans, of each label's run with
        the smallest seed; those by items are means over spans.

    Raises:
        Missing: if nothing has been tested.
    """
    rows = [row for run in sources.first_runs() for row in _by_items(run, sources.top)]
    if not rows:
        raise Missing("no span has been tested yet")
    for run in sources.first_runs():
        try:
            rows += _by_users(run, sources.top)
        except Missing:
            continue
    return {"groups": pa.Table.from_pylist(rows)}


def _by_items(run: Run, top: int) -> list[dict[str, Any]]:
    rows = []
    for place, (group, suffix) in enumerate(_PARTS.items()):
        means: dict[str, Any] = {}
        for name in ("hr", "ndcg"):
            values = [line.get(f"{name}@{top}{suffix}") for line in run.lines]
            known = [value for value in values if value is not None]
            means[name] = float(np.mean(known)) if known else None
        if means["hr"] is not None:
            rows.append(run.place | {"by": "items", "group": group, "place": place, "tests": None} | means)
    return rows


def _by_users(run: Run, top: int) -> list[dict[str, Any]]:
    """The records by kinds of users.

    Raises:
        Missing: without files of users, or the data.
    """
    found: defaultdict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = defaultdict(list)
    counts = _counts(run.dataset)
    for line in run.lines:
        span, table = line["span"], run.users(line["test_span"])
        if table is None:
            raise Missing(f"{run.folder} has no metrics of users: {_NEED}")
        users = run.dataset.user_ids(table["user"].combine_chunks())
        hr, ndcg = (table[f"{name}@{top}"].to_numpy() for name in ("hr", "ndcg"))
        found["activity"].append((next(counts)[users], hr, ndcg))
        if span in run.exported:
            found["interests"].append((_interests(run, span, users), hr, ndcg))
            puzzled = _puzzled(run, span)
            if puzzled is not None:
                found["detection"].append((np.isin(users, puzzled), hr, ndcg))
    rows = []
    for by, parts in found.items():
        values, hr, ndcg = (np.concatenate(column) for column in zip(*parts, strict=True))
        for place, group, chosen in _cut(by, values):
            if chosen.any():
                means = {"hr": float(hr[chosen].mean()), "ndcg": float(ndcg[chosen].mean())}
                rows.append(run.place | {"by": by, "group": group, "place": place, "tests": int(chosen.sum())} | means)
    return rows


def _counts(dataset: Dataset) -> Iterator["_ByUser"]:
    """The number of each user's interactions up to span 1, to span 2, and so on."""
    totals: dict[int, np.ndarray] = {}
    for span in range(dataset.spans):
        if dataset.entries[span].retired:
            raise Missing(dataset.retired_rows)
        for bucket in range(dataset.buckets):
            sequences = dataset.sequences(span, bucket)
            own = totals.get(bucket, np.zeros(0, np.int64))
            size = dataset.entries[span].users[bucket]
            own = np.pad(own, (0, size - len(own)))
            own[sequences.users // dataset.buckets] += np.diff(sequences.offsets)
            totals[bucket] = own
        if span:
            yield _ByUser(dict(totals), dataset.buckets)


class _ByUser:
    """A number for each user: ``numbers[users]``."""

    def __init__(self, totals: dict[int, np.ndarray], buckets: int) -> None:
        self._totals, self._buckets = totals, buckets

    def __getitem__(self, users: np.ndarray) -> np.ndarray:
        local, bucket = np.divmod(users, self._buckets)
        found = np.zeros(len(users), np.int64)
        for one, numbers in self._totals.items():
            own = bucket == one
            found[own] = numbers[local[own]]
        return found


def _interests(run: Run, span: int, users: np.ndarray) -> np.ndarray:
    known, _, counts = ExportedInterests.of(run, span).places
    place = np.searchsorted(known, users).clip(0, max(len(known) - 1, 0))
    return np.where(known[place] == users, counts[place], 0) if len(known) else np.zeros(len(users), np.int64)


def _puzzled(run: Run, span: int) -> np.ndarray | None:
    """The users whom the detector found puzzled in a span; None if it did not run."""
    table = run.parts(span, "detections")
    return table.filter(table["puzzled"])["user"].to_numpy() if len(table) else None


def _cut(by: str, values: np.ndarray) -> Iterator[tuple[int, str, np.ndarray]]:
    """The groups of a kind, each with its place and a mask of its tests: quarters of activity, numbers of interests."""
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
