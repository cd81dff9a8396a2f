"""Tables III to V of the paper, ranks over data sets and base models, and quality against cost."""

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from dist_imsr.report.sources import Comparison, Group, Missing, Sources


def comparison(sources: Sources) -> dict[str, pa.Table]:
    """Computes the section.

    Args:
        sources: runs and comparison.

    Returns:
        ``comparison``: the columns of the comparison's summary.parquet. ``comparison_ranks``: label, rank (its mean by
        HR over data sets and base models, 1 for the best), blocks (their number) and difference (the critical one of
        Nemenyi's test at 0.05). ``comparison_cost``: data, base, label, seconds (of training in the last tested span),
        hr (mean over spans and seeds), front (whether none is both better and cheaper). ``comparison_times``: data,
        base, label, span, seconds.

    Raises:
        Missing: if fewer than two rows can be compared.
    """
    cost = [row for group in sources.groups for row in _cost(sources, group)]
    if len({row["label"] for row in cost}) < 2:
        raise Missing("there are no two rows to compare: name more runs, or a comparison")
    rows = {"comparison_cost": cost, "comparison_ranks": _ranks(cost), "comparison_times": _times(sources)}
    if sources.comparison is not None:
        rows["comparison"] = sources.comparison.summary
    return {name: pa.Table.from_pylist(found) for name, found in rows.items() if found}


def _cost(sources: Sources, group: Group) -> list[dict[str, Any]]:
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in sources.records_of(group):
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
    found: defaultdict[tuple[str, str, str, int], list[float]] = defaultdict(list)
    for record in sources.records:
        found[record["data"], record["base"], record["label"], record["span"]].append(record["train_seconds"])
    names = ("data", "base", "label", "span")
    return [dict(zip(names, key, strict=True)) | {"seconds": float(np.mean(seconds))} for key, seconds in found.items()]


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


_ENABLED, _DELTA_K = "strategy.imsr.detector.enabled", "strategy.imsr.detector.delta_k"
_KEYS = {
    "strategy.imsr.detector.c1": "c1",
    "strategy.imsr.trimmer.c2": "c2",
    "model.interests": "K",
    _DELTA_K: "delta K",
}


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
        ``sensitivity``: data, base, label, key, value, place (its order), and as in `ablation`; the row without any
        change is in the series of each key.

    Raises:
        Missing: without such rows.
    """
    found = _required(sources)
    defaults = _default_values(sources)
    records = []
    for record in found.summary:
        settings = _changed(found, record["strategy"])
        if not record["seeds"] or settings is None:
            continue
        if settings.get(_ENABLED) == "false" and "model.interests" in settings:  # all interests from the beginning
            settings = {key: value for key, value in settings.items() if key != _ENABLED} | {_DELTA_K: "0"}
        if not settings.keys() <= _KEYS.keys():
            continue
        values = defaults | {_KEYS[key]: float(value) for key, value in settings.items()}
        for key in _series({_KEYS[key] for key in settings}):
            number = values[key] if key in values else values["K"] * 1000 + values["delta K"]
            text = f"{values[key]:g}" if key in values else f"{values['K']:g}, {values['delta K']:g}"
            records.append(_record(record) | {"key": key, "value": text, "place": number, "changed": bool(settings)})
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
    if settings is None or found.config["strategies"][row]["settings"]:
        return False
    parts = all(key.startswith("strategy.imsr.") for key in settings)
    return parts and not (settings and settings.keys() <= _KEYS.keys())


def _default_values(sources: Sources) -> dict[str, float]:
    """The values of the row that changes nothing; those of any run where there is no such row."""
    found = _required(sources)
    runs = [run for run in found.runs if _changed(found, run.label) is not None]
    if not runs:
        raise Missing("the comparison has no finished run of IMSR")
    run = next((run for run in runs if not found.row_settings(run.label)), runs[0])
    return {
        "c1": run.imsr("detector", "c1"),
        "c2": run.imsr("trimmer", "c2"),
        "K": run.settings["model"]["interests"],
        "delta K": run.imsr("detector", "delta_k"),
    }


def _series(changed: set[str]) -> list[str]:
    """The keys whose series a row belongs to."""
    if not changed:
        return ["c1", "c2", "K, delta K"]
    return ["K, delta K"] if changed <= {"K", "delta K"} else sorted(changed) if len(changed) == 1 else []


def _record(record: dict[str, Any]) -> dict[str, Any]:
    names = ("data", "base", "hr", "hr_std", "ndcg", "ndcg_std", "unseen", "interests")
    return {"label": record["strategy"]} | {name: record[name] for name in names}
