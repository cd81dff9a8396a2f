"""Means over seeds, relative improvement, and paired tests over users and over seeds."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
from scipy import stats

from dist_imsr.data.sql import quoted_paths

METRICS = ("hr", "ndcg")


class Paired(NamedTuple):
    """A two-sided paired t-test.

    Args:
        n: number of pairs.
        p: None for fewer than two pairs, and for differences without variance.
    """

    n: int
    p: float | None


def mean(values: Sequence[float]) -> float | None:
    """The mean; None of no values."""
    return math.fsum(values) / len(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample; None of fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def improvement(own: Sequence[float], reference: Sequence[float]) -> float | None:
    """RI of Table III: the relative improvement of the average of HR and NDCG, in per cent; None if the reference is 0.

    Args:
        own: HR and NDCG of a row, of each seed.
        reference: the same of the reference.
    """
    base = math.fsum(reference)
    return 100 * (math.fsum(own) / base - 1) if base else None


def paired(differences: Sequence[float] | np.ndarray) -> Paired:
    """Tests whether the mean of the pairs' differences is 0; p is 1 where no pair differs."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return Paired(len(values), None)
    if not values.any():
        return Paired(len(values), 1.0)
    if np.ptp(values) <= 1e-12 * np.abs(values).max():  # no variance to compare with
        return Paired(len(values), None)
    return Paired(len(values), float(stats.ttest_1samp(values, 0.0).pvalue))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Corrects the p-values of a family of tests by Holm's method, which bounds the chance of any wrong finding.

    Args:
        values: of the tests; those that are None do not count.

    Returns:
        The corrected values in the same order.
    """
    order = sorted((value, place) for place, value in enumerate(values) if value is not None)
    corrected, largest = list[float | None]([None] * len(values)), 0.0
    for done, (value, place) in enumerate(order):
        corrected[place] = largest = max(largest, min(1.0, value * (len(order) - done)))
    return corrected


def over_seeds(own: Mapping[int, float], other: Mapping[int, float]) -> Paired:
    """Tests two rows, each with a mean over spans by seed, over the seeds that both have."""
    return paired([own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())])


def over_users(own: Sequence[Path], other: Sequence[Path], top: int) -> dict[str, Paired]:
    """Tests two rows over users: the mean over a user's tested spans and over seeds is one value.

    Args:
        own: Parquet files with a row for each tested user, of all spans and seeds that both rows have.
        other: those of the row that it is paired with.
        top: N.

    Returns:
        The test by metric.

    Raises:
        ValueError: if the two were not tested on the same users, each equally often.
    """
    means = ", ".join(f'avg("{name}@{top}") as {name}' for name in METRICS)
    one, two = (
        f"(select user, count(*) as n, {means} from read_parquet({quoted_paths(of)}) group by user)"
        for of in (own, other)
    )
    differences = ", ".join(f"a.{name} - b.{name} as {name}" for name in METRICS)
    with duckdb.connect() as connection:
        connection.execute("set threads = 1")  # the same sums, and so the same digits, every time
        query = f"select a.n is distinct from b.n as odd, {differences} from {one} a full join {two} b using (user)"
        found = connection.execute(f"{query} order by user").fetchnumpy()
    if found["odd"].any():
        raise ValueError(f"{own[0].parent} and {other[0].parent} were tested on different users")
    return {name: paired(np.asarray(found[name])) for name in METRICS}
