"""Metrics by tested span, over seeds (Fig. 4 of the paper)."""

from collections import defaultdict

import numpy as np
import pyarrow as pa

from dist_imsr.report.sources import Missing, Sources

PARTS = ("", "_unseen", "_new", "_existing")


def over_spans(sources: Sources) -> dict[str, pa.Table]:
    """Computes the section.

    Args:
        sources: runs and comparison.

    Returns:
        ``over_spans``: data, base, label, metric, test_span, mean, deviation (over seeds; null for one), seeds.

    Raises:
        Missing: if no run has been tested.
    """
    metrics = [f"{name}@{sources.top}{part}" for part in PARTS for name in ("hr", "ndcg")]
    found: defaultdict[tuple[str, str, str, str, int], list[float]] = defaultdict(list)
    for record in sources.records:
        for metric in metrics:
            if record.get(metric) is not None:
                key = (record["data"], record["base"], record["label"], metric, record["test_span"])
                found[key].append(record[metric])
    if not found:
        raise Missing("no span has been tested yet")
    rows = [
        dict(zip(("data", "base", "label", "metric", "test_span"), key, strict=True))
        | {
            "mean": float(np.mean(values)),
            "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
            "seeds": len(values),
        }
        for key, values in found.items()
    ]
    return {"over_spans": pa.Table.from_pylist(rows)}
