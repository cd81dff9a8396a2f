"""Tables III to V of the paper, ranks over data sets and base models, and quality against cost."""

import math
from collections import defaultdict
from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from dist_imsr.report.sources import NO_BASE, Comparison, Group, Missing, Sources


def comparison(sources: Sources) -> dict[str, pa.Table]:
    """Computes the section.

    Args:
        sources: runs and comparison.

    Returns:
        ``comparison``: the columns of the comparison's summary.parquet, and life_long, for rows of Table IV.
        ``comparison_ranks``: label, rank (its mean by HR over data sets and base models, 1 for the best), blocks (their
        number) and difference (the critical one of Nemenyi's test at 0.05). ``comparison_cost``: data, base, label,
        seconds (of training in the last span), hr (mean over seeds and the spans that all rows were tested on), front
        (whether none is both better and cheaper). ``comparison_times``: data, base, label, span, seconds (of training)
        and test_seconds.

    Raises:
        Missing: if fewer than two rows can be compared.
    """
    cost = [row for group in sources.groups for row in _cost(sources, group)]
    if len({row["label"] for row in cost}) < 2:
        raise Missing("there are no two rows to compare: name more runs, or a comparison")
    rows = {"comparison_cost": cost, "comparison_ranks": _ranks(cost), "comparison_times": _times(sources)}
    if sources.comparison is not None:
        shared = (*sources.comparison.bases, NO_BASE)
        rows["comparison"] = [row | {"life_long": row["base"] not in shared} for row in sources.comparison.summary]
    return {name: pa.Table.from_pylist(found) for name, found in rows.items() if found}


def _cost(sources: Sources, group: Group) -> list[dict[str, Any]]:
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in sources.shared_records(group):
        found[record["label"]].append(record)
    rows = list[dict[str, Any]]()
    for label, records in found.items():
        last = max(record["span"] for record in records)
        seconds = np.mean([record["train_seconds"] for record in records if record["span"] == last])
        hr = np.mean([record[f"hr@{sources.top}"] for record in records])
        rows.append(
            {"data": group.data, "base": group.base, "label": label, "seconds": float(seconds), "hr": float(hr)}
            | {"is_baseline": bool(records[0]["is_baseline"])}
        )
    for row in rows:
        row["front"] = not any(_dominates(other, row) for other in rows)
    return rows


def _times(sources: Sources) -> list[dict[str, Any]]:
    found: defaultdict[tuple[str, str, str, int], list[tuple[float, float]]] = defaultdict(list)
    for record in sources.records:
        seconds = record["train_seconds"], record["eval_seconds"]
        found[record["data"], record["base"], record["label"], record["span"]].append(seconds)
    names = ("data", "base", "label", "span")
    return [
        dict(zip(names, key, strict=True))
        | dict(zip(("seconds", "test_seconds"), map(float, np.mean(each, 0)), strict=True))
        for key, each in found.items()
    ]


def _dominates(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a row is at least as good and as cheap as another one, and not both the same."""
    values = [(row["hr"], -row["seconds"]) for row in (one, other)]
    return values[0] != values[1] and all(mine >= its for mine, its in zip(*values, strict=True))


def _ranks(cost: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean ranks of the labels that all blocks have; none for fewer than two blocks or three labels."""
    blocks: defaultdict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in cost:
        blocks[row["data"], row["base"]][row["label"]] = row["hr"]
    shared = set.intersection(*(set(block) for block in blocks.values())) if blocks else set[str]()
    labels = [label for label in next(iter(blocks.values()), {}) if label in shared]
    if len(blocks) < 2 or len(labels) < 3:
        return []
    ranks = np.array([stats.rankdata([-block[label] for label in labels]) for block in blocks.values()]).mean(0)
    k, n = len(labels), len(blocks)
    critical = stats.studentized_range.ppf(0.95, k, np.inf) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
    return [
        {"label": label, "rank": float(rank), "blocks": n, "difference": float(critical)}
        for label, rank in zip(labels, ranks, strict=True)
    ]


_DETECTOR, _TRIMMER = "strategy.imsr.detector", "strategy.imsr.trimmer"
_PARTS = {
    "strategy.imsr.rho",
    "strategy.imsr.retainer.name",
    *(f"{_DETECTOR}.enabled", f"{_TRIMMER}.trim", f"{_TRIMMER}.project"),
}
"""Keys that switch a part of IMSR off, or replace it."""
_SETTINGS = {f"{_DETECTOR}.c1", f"{_TRIMMER}.c2", f"{_DETECTOR}.delta_k", "model.interests"}
"""Keys that Fig. 6 of the paper varies."""


def ablation(sources: Sources) -> dict[str, pa.Table]:
    """Computes the section from the rows of a comparison that change one part of IMSR.

    Args:
        sources: with a comparison.

    Returns:
        ``ablation``: data, base, label, hr, hr_std, ndcg, ndcg_std (per cent, over seeds).

    Raises:
        Missing: without such rows.
    """
    found = _required(sources)
    rows = [row for row in found.config["strategies"] if _is_ablation(found, row)]
    records = [_record(record) for record in found.summary if record["strategy"] in rows and record["seeds"]]
    if len(rows) < 2 or not records:
        raise Missing("the comparison has no rows that switch off a part of IMSR, as configs/compare_ablation.yaml has")
    return {"ablation": pa.Table.from_pylist(records)}


def sensitivity(sources: Sources) -> dict[str, pa.Table]:
    """Computes the section from the rows of a comparison that change c1, c2, K or delta K of IMSR.

    Args:
        sources: with a comparison.

    Returns:
        ``sensitivity``: data, base, label, key, value, order, and as in `ablation`; the row without any
        change is in the series of each key.

    Raises:
        Missing: without such rows.
    """
    found = _required(sources)
    runs = {(run.group.data, run.base, run.label): run for run in found.runs}
    records = []
    for record in found.summary:
        run = runs.get((record["data"], record["base"], record["strategy"]))
        settings = _changed(found, record["strategy"])
        if run is None or settings is None:
            continue
        grows = run.imsr("detector", "enabled")
        if "model.interests" in settings and not grows:  # all interests from the beginning
            settings.pop(f"{_DETECTOR}.enabled", None)
        if not settings.keys() <= _SETTINGS:
            continue
        interests, delta = run.settings["model"]["interests"], run.imsr("detector", "delta_k") if grows else 0
        values = {
            "c1": (run.imsr("detector", "c1"), f"{run.imsr('detector', 'c1'):g}"),
            "c2": (run.imsr("trimmer", "c2"), f"{run.imsr('trimmer', 'c2'):g}"),
            "K, delta K": (1000 * interests + delta, f"{interests}, {delta}"),
        }
        for key in _series(settings.keys()):
            order, text = values[key]
            own = {"key": key, "value": text, "order": float(order), "changed": bool(settings)}
            records.append(_record(record) | own)
    if not any(record["changed"] for record in records):
        raise Missing("the comparison has no rows of c1, c2, K or delta K, as configs/compare_sensitivity.yaml has")
    return {"sensitivity": pa.Table.from_pylist(records)}


def _required(sources: Sources) -> Comparison:
    if sources.comparison is None:
        raise Missing("it needs --compare with the folder of a comparison")
    return sources.comparison


def _changed(found: Comparison, row: str) -> dict[str, str] | None:
    """The keys that a row of IMSR sets; None for other rows."""
    entry = found.config["strategies"][row]
    own = (entry["strategy"] or row) == "imsr" and entry["baseline"] is None
    return found.row_settings(row) if own else None


def _is_ablation(found: Comparison, row: str) -> bool:
    settings = _changed(found, row)
    return settings is not None and not found.config["strategies"][row]["settings"] and settings.keys() <= _PARTS


def _series(changed: Collection[str]) -> list[str]:
    """The keys whose series a row belongs to."""
    if not changed:
        return ["c1", "c2", "K, delta K"]
    if set(changed) <= {"model.interests", f"{_DETECTOR}.delta_k"}:
        return ["K, delta K"]
    return [key.rpartition(".")[2] for key in changed] if len(changed) == 1 else []


def _record(record: dict[str, Any]) -> dict[str, Any]:
    names = ("data", "base", "hr", "hr_std", "ndcg", "ndcg_std", "unseen", "interests")
    return {"label": record["strategy"]} | {name: record[name] for name in names}
