"""Compares a run with the planted truth of its data: quality of the detector, and recovery of planted interests."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.optimize import linear_sum_assignment

from dist_imsr.data.dataset import Dataset
from dist_imsr.evaluation.exported import read_parts
from dist_imsr.evaluation.finished import FinishedRun, vectors_of


@dataclass(frozen=True)
class StoredInterests:
    """Stored interests, user after user.

    Args:
        users: ``[n]`` int64, ascending and distinct.
        offsets: ``[n + 1]``; user i has the interests ``offsets[i] .. offsets[i + 1] - 1``.
        vectors: ``[S, d]``.
    """

    users: np.ndarray
    offsets: np.ndarray
    vectors: np.ndarray


@dataclass(frozen=True)
class Truth:
    """Planted interests, each in one cluster of items.

    Args:
        users: ``[n]`` int64, ascending.
        clusters: ``[n]``, the cluster of an interest of that user.
        spans: ``[n]``, the span in which the interest begins.
        of_item: ``[items]``, each item's cluster.
    """

    users: np.ndarray
    clusters: np.ndarray
    spans: np.ndarray
    of_item: np.ndarray

    @classmethod
    def read(cls, dataset: Dataset) -> "Truth":
        """Reads the truth of prepared data.

        Raises:
            ValueError: naming the data, if they have none.
        """
        paths = {name.partition(".")[0]: dataset.local(name) for name in dataset.manifest["files"]}
        if "truth_users" not in paths:
            raise ValueError(
                f"{dataset.path} has no truth_users.parquet: only prepare.py --source drift plants a truth"
            )
        users, items = pq.read_table(paths["truth_users"]), pq.read_table(paths["truth_items"])
        return cls(
            users["user"].to_numpy(), users["cluster"].to_numpy(), users["span"].to_numpy(), items["cluster"].to_numpy()
        )

    def until(self, span: int) -> "Truth":
        """The interests that begin in a span or before."""
        begun = self.spans <= span
        return Truth(self.users[begun], self.clusters[begun], self.spans[begun], self.of_item)


def compare_with_truth(run: FinishedRun, match_cosine: float) -> list[dict[str, Any]]:
    """Compares every exported span of a run with the planted truth.

    Args:
        run: the run.
        match_cosine: a planted interest counts as held if its matched stored interest has at least this cosine with the
            mean embedding of its cluster.

    Returns:
        One row per span; a ratio without denominator is None. ``users``: users that the detector examined; ``planted``:
        those with a planted interest that begins in this span; ``precision``, ``recall``, ``f1`` of the detector;
        ``late``: the share of puzzled users without one, for whom an earlier planted interest was not held when the
        span began, None if the span before was not exported; ``best_c1`` and ``best_f1``: the best possible threshold
        and its f1; ``held``: the share of planted interests with a matching stored one; ``held_new``: of those that
        begin in this span; ``cosine``: mean over matched pairs; ``interests`` and ``interests_planted``: means over
        users with interests; ``moved``: 1 - the mean cosine between existing interests that changed, after this span
        and after the previous one.

    Raises:
        ValueError: naming the missing file.
    """
    truth = Truth.read(run.dataset)
    rows, before, lacking = [], list[StoredInterests](), np.empty(0, dtype=np.int64)
    for span in run.spans:
        now = [_stored_interests(table) for table in _tables(run, span, "interests")]
        planted = truth.until(span)
        lacks = lacking if span - 1 in run.spans else None
        row = {"span": span} | judged(*_detections(run, span), planted, span, lacks)
        found, lacking = matched(now, _centroids(run, span, truth), planted, span, match_cosine)
        rows.append(row | found | {"moved": _moved(before, now)})
        before = now
    return rows


def judged(
    users: np.ndarray,
    fit: np.ndarray,
    puzzled: np.ndarray,
    truth: Truth,
    span: int,
    lacking: np.ndarray | None = None,
) -> dict[str, float | int | None]:
    """Precision and recall of the detector.

    Args:
        users: ``[n]``, distinct.
        fit: ``[n]``, the value that is compared with c1.
        puzzled: ``[n]`` bool.
        truth: the planted interests.
        span: the span of the detection.
        lacking: ids of users with a planted interest that was not held when the span began; None if not known.

    Returns:
        The first part of a row of `compare_with_truth`.
    """
    examined = np.isfinite(fit)  # the others have too few items
    users, fit, puzzled = users[examined], fit[examined], puzzled[examined]
    real = np.isin(users, truth.users[truth.spans == span])
    right = (puzzled & real).sum()
    order = np.argsort(fit)
    ordered = np.append(fit[order], np.inf)
    f1 = 2 * real[order].cumsum() / (np.arange(1, len(users) + 1) + max(real.sum(), 1))
    f1[ordered[1:] == ordered[:-1]] = 0  # equal fits are on the same side of any threshold
    best = int(f1.argmax()) if real.any() else None
    beyond = 0.0 if best is None else min(ordered[best + 1], ordered[best] + max(abs(ordered[best]), 1e-6))
    return {
        "users": len(users),
        "planted": int(real.sum()),
        "precision": _ratio(right, puzzled.sum()),
        "recall": _ratio(right, real.sum()),
        "f1": _ratio(2 * right, puzzled.sum() + real.sum()),
        "late": None if lacking is None else _ratio((puzzled & ~real & np.isin(users, lacking)).sum(), puzzled.sum()),
        "best_c1": None if best is None else float((ordered[best] + beyond) / 2),
        "best_f1": None if best is None else float(f1[best]),
    }


def matched(
    stored: list[StoredInterests], centroids: np.ndarray, truth: Truth, span: int, least: float
) -> tuple[dict[str, float | int | None], np.ndarray]:
    """Matches each user's planted interests with stored ones: the assignment with the largest sum of cosines.

    Args:
        stored: stored interests, in parts.
        centroids: ``[clusters, d]``, the mean embedding of each cluster.
        truth: the planted interests up to the span.
        span: the span of the stored interests.
        least: the smallest cosine of a matching pair.

    Returns:
        The second part of a row of `compare_with_truth`, and the ids of users with a planted interest that is not held.
    """
    directions = _normalised(centroids)
    cosines, new, lacking, num_interests, num_users = [], [], [], 0, 0
    for part in stored:
        vectors = _normalised(part.vectors)
        first, end = np.searchsorted(truth.users, part.users, "left"), np.searchsorted(truth.users, part.users, "right")
        num_interests += len(vectors)
        num_users += len(part.users)
        for row in range(len(part.users)):
            mine = slice(first[row], end[row])
            agreement = directions[truth.clusters[mine]] @ vectors[part.offsets[row] : part.offsets[row + 1]].T
            found = np.full(len(agreement), -np.inf)
            pairs = linear_sum_assignment(agreement, maximize=True)
            found[pairs[0]] = agreement[pairs]
            cosines.append(found)
            new.append(truth.spans[mine] == span)
            if (found < least).any():
                lacking.append(part.users[row])
    found_cosines, born = np.concatenate([[], *cosines]), np.concatenate([np.empty(0, bool), *new])
    paired = np.isfinite(found_cosines)
    shares = {
        "held": _ratio((found_cosines >= least).sum(), len(found_cosines)),
        "held_new": _ratio((found_cosines[born] >= least).sum(), born.sum()),
        "cosine": _ratio(found_cosines[paired].sum(), paired.sum()),
        "interests": _ratio(num_interests, num_users),
        "interests_planted": _ratio(len(found_cosines), num_users),
    }
    return shares, np.array(lacking, dtype=np.int64)


def _moved(before: list[StoredInterests], now: list[StoredInterests]) -> float | None:
    """1 - mean cosine of changed interests; existing interests keep their slots."""
    total, count = 0.0, 0
    for earlier, later in zip(before, now, strict=False):
        owner = np.arange(len(earlier.users)).repeat(np.diff(earlier.offsets))
        at = np.searchsorted(later.users, earlier.users[owner])
        slot = np.arange(len(owner)) - earlier.offsets[owner]
        vectors = later.vectors[later.offsets[at] + slot]
        moved = (vectors != earlier.vectors).any(1)
        total += (_normalised(vectors[moved]) * _normalised(earlier.vectors[moved])).sum()
        count += moved.sum()
    return 1 - total / count if count else None


def _tables(run: FinishedRun, span: int, name: str) -> Iterator[pa.RecordBatch]:
    return read_parts(run.folder, span, name, run.dataset, "name the run's with --data")


def _stored_interests(table: pa.RecordBatch) -> StoredInterests:
    users, first = np.unique(table["user"].to_numpy(), return_index=True)
    return StoredInterests(users, np.append(first, table.num_rows), vectors_of(table))


def _detections(run: FinishedRun, span: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users, the smallest fit of each, and whether the user was ever puzzled."""
    tables = list(_tables(run, span, "detections"))
    user, fit, puzzled = (
        np.concatenate([table[name].to_numpy(zero_copy_only=False) for table in tables])
        for name in ("user", "fit", "puzzled")
    )
    order = np.lexsort((fit, user))
    users, first = np.unique(user[order], return_index=True)
    ever = np.logical_or.reduceat(puzzled[order], first) if len(first) else puzzled
    return users, fit[order][first], ever


def _centroids(run: FinishedRun, span: int, truth: Truth) -> np.ndarray:
    """The mean embedding of each cluster's known items; zero for a cluster without known items."""
    count = np.zeros(max(truth.of_item.max(), truth.clusters.max()) + 1)
    total = np.zeros((len(count), run.model.dim))
    for table in _tables(run, span, "items"):
        clusters = truth.of_item[table["item"].to_numpy()]
        np.add.at(total, clusters, vectors_of(table)[:, : run.model.dim])
        count += np.bincount(clusters, minlength=len(count))
    return total / np.maximum(count, 1)[:, None]


def _normalised(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
