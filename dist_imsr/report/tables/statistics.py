"""Intervals, histograms and thinning, as all sections use them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from scipy import stats

from dist_imsr.data.sql import quoted_paths

BINS = 40
"""Of a histogram."""
POINTS = 200
"""Of a curve; longer ones are thinned to the means of equal stretches."""


def interval(values: Sequence[float] | np.ndarray) -> tuple[float | None, float | None]:
    """The 95 percent confidence interval of the mean by Student's t; None, None for fewer than two values."""
    found = np.asarray(values, dtype=np.float64)
    if len(found) < 2:
        return None, None
    half = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found)))
    return float(found.mean()) - half, float(found.mean()) + half


def user_means(paths: Sequence[Path], names: Sequence[str]) -> pa.Table:
    """Each user's mean over files of users' metrics.

    Args:
        paths: of the files.
        names: of the metrics; those that a file lacks are left out.

    Returns:
        ``user`` (raw ids) and the metrics, NaN where a user has none.
    """
    source = f"read_parquet({quoted_paths(paths)}, union_by_name = true)"
    with duckdb.connect() as connection:
        connection.execute("set threads = 1")  # the same sums, and so the same digits, every time
        known = {row[0] for row in connection.execute(f"describe select * from {source}").fetchall()}
        means = ", ".join(f'coalesce(avg("{name}"), \'NaN\') as "{name}"' for name in names if name in known)
        return connection.sql(f"select user, {means} from {source} group by user order by user").to_arrow_table()


def histogram(values: np.ndarray, low: float, high: float, place: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a histogram with equal bins; values beyond the range count in the outermost bins.

    Args:
        values: ``[n]``; those that are not finite are left out.
        low: the lower edge of the first bin.
        high: the upper edge of the last one.
        place: what the values belong to, copied to each record.
    """
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts, _ = np.histogram(values[np.isfinite(values)].clip(edges[0], edges[-1]), edges)
    return [
        place | {"low": float(one), "high": float(two), "count": int(count)}
        for one, two, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `POINTS` points of a curve: the means of as many equal stretches of it.

    Args:
        x: ``[n]``.
        y: ``[n]``.
    """
    if len(x) <= POINTS:
        return x, y
    cuts = np.linspace(0, len(x), POINTS + 1).astype(np.int64)[:-1]
    lengths = np.diff(np.append(cuts, len(x)))
    return np.add.reduceat(x, cuts) / lengths, np.add.reduceat(y, cuts) / lengths
