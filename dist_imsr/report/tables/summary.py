"""What was reached, on what data, and with which configuration and versions."""

from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dist_imsr.comparison.statistics import paired
from dist_imsr.config import plain
from dist_imsr.data.dataset import Dataset
from dist_imsr.keys import default_of, is_read
from dist_imsr.registry import extended
from dist_imsr.report.sources import Group, Missing, Sources
from dist_imsr.report.tables.statistics import interval
from dist_imsr.training.config import TrainConfig

_METRICS = ("hr@{}", "ndcg@{}", "hr@{}_unseen", "ndcg@{}_unseen")


def summary(sources: Sources) -> dict[str, pa.Table]:
    """Computes the section.

    Args:
        sources: runs and comparison.

    Returns:
        ``summary``: data, base, label, metric, mean over spans and seeds, low and high (95 percent, over users where
        there are files of users, else over seeds), over, versus (the reference), difference and p (paired over users).
        ``data_spans``: data, span, start, interactions, users, new_users, items, new_items, repeats (shares).
        ``settings``: label, data, base, key, value, default: where a run differs from the defaults.
        ``environments``: label, folder, started, command, commit, versions, machine.
    """
    tables = {
        "summary": _metrics(sources),
        "data_spans": _data_spans(sources),
        "settings": _settings(sources),
        "environments": _environments(sources),
    }
    return {name: pa.Table.from_pylist(rows) for name, rows in tables.items() if rows}


def user_means(sources: Sources, group: Group) -> dict[str, dict[str, dict[Any, float]]]:
    """Each user's mean over tests and seeds, by label and metric; empty for labels without files of users."""
    found: dict[str, dict[str, dict[Any, float]]] = {}
    for label in sources.labels(group):
        sums: defaultdict[str, defaultdict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
        for run in (run for run in sources.runs if run.group == group and run.label == label):
            for line in run.lines:
                table = run.users(line["test_span"])
                if table is None:
                    continue
                names = (one.format(sources.top) for one in _METRICS)
                for name in (one for one in names if one in table.column_names):
                    for user, value in zip(table["user"].to_pylist(), table[name].to_pylist(), strict=True):
                        if value is not None:
                            sums[name][user].append(value)
        found[label] = {
            name: {user: sum(values) / len(values) for user, values in users.items()} for name, users in sums.items()
        }
    return found


def _metrics(sources: Sources) -> list[dict[str, Any]]:
    rows = list[dict[str, Any]]()
    for group in sources.groups:
        users, records = user_means(sources, group), sources.records_of(group)
        for label in dict.fromkeys(record["label"] for record in records):
            own = [record for record in records if record["label"] == label]
            for metric in (one.format(sources.top) for one in _METRICS):
                by_seed = defaultdict(list)
                for record in own:
                    if record.get(metric) is not None:
                        by_seed[record["seed"]].append(record[metric])
                if not by_seed:
                    continue
                seeds = [float(np.mean(values)) for values in by_seed.values()]
                mine = users.get(label, {}).get(metric, {})
                over, values = ("users", list(mine.values())) if mine else ("seeds", seeds)
                low, high = interval(values)
                mean = float(np.mean(seeds))
                if mine and low is not None and high is not None:  # users count alike, whatever their number of tests
                    shift = mean - float(np.mean(values))
                    low, high = low + shift, high + shift
                row = {
                    "data": group.data,
                    "base": group.base,
                    "label": label,
                    "metric": metric,
                    "mean": mean,
                    "low": low,
                    "high": high,
                    "over": over,
                    "seeds": len(seeds),
                }
                rows.append(row | _difference(sources, label, metric, users, group, mean))
    return rows


def _difference(
    sources: Sources,
    label: str,
    metric: str,
    users: dict[str, dict[str, dict[Any, float]]],
    group: Group,
    mean: float,
) -> dict[str, Any]:
    """The difference from the reference, and a paired test over the users that both have."""
    reference, nothing = sources.reference, {"versus": None, "difference": None, "p": None}
    if reference is None or label == reference:
        return nothing
    records = [record for record in sources.records_of(group) if record["label"] == reference]
    by_seed = defaultdict(list)
    for record in records:
        if record.get(metric) is not None:
            by_seed[record["seed"]].append(record[metric])
    if not by_seed:
        return nothing
    other = float(np.mean([np.mean(values) for values in by_seed.values()]))
    mine, its = (users.get(name, {}).get(metric, {}) for name in (label, reference))
    shared = sorted(mine.keys() & its.keys(), key=str)
    p = paired([mine[user] - its[user] for user in shared]).p if shared else None
    return {"versus": reference, "difference": mean - other, "p": p}


def _data_spans(sources: Sources) -> list[dict[str, Any]]:
    rows = []
    for group in {one.data: one for one in sources.groups}.values():
        run = next(run for run in sources.runs if run.group == group)
        try:
            rows += [{"data": group.data} | row for row in _spans(run.dataset)]
        except Missing:
            continue
    return rows


def _spans(dataset: Dataset) -> list[dict[str, Any]]:
    rows, users_before = [], 0
    for span, entry in enumerate(dataset.entries):
        users, interactions = sum(entry.users), max(entry.interactions, 1)
        rows.append(
            {
                "span": span,
                "start": f"{datetime.fromtimestamp(entry.first_second, UTC):%Y-%m-%d %H:%M}",
                "interactions": entry.interactions,
                "users": entry.active_users,
                "new_users": (users - users_before) / max(entry.active_users, 1),
                "items": entry.items,
                "new_items": entry.interactions_with_new_items / interactions,
                "repeats": None if entry.retired else _repeats(dataset, span) / interactions,
            }
        )
        users_before = users
    return rows


def _repeats(dataset: Dataset, span: int) -> int:
    """How many interactions of a span are with items that the user had met in an earlier span."""
    buckets = range(dataset.buckets)
    return sum(int(dataset.sequences(span, bucket).met_before.sum()) for bucket in buckets)


def _settings(sources: Sources) -> list[dict[str, Any]]:
    tree = extended(TrainConfig)
    rows = []
    for run in sources.first_runs():
        for key, value in run.values.items():
            default = plain(default_of(tree, key))
            if key not in ("run_dir", "data.path", "seed") and value != default and is_read(tree, key, run.values):
                rows.append(run.place | {"key": key, "value": str(value), "default": str(default)})
    return rows


def _environments(sources: Sources) -> list[dict[str, Any]]:
    rows = []
    for run in sources.first_runs():
        rows += [_environment(run.label, run.folder, line) for line in run.environments]
    return rows


def _environment(label: str, folder: Path, line: dict[str, Any]) -> dict[str, Any]:
    versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items() if version)
    commit = "-" if line["commit"] is None else line["commit"][:12] + " and changes" * bool(line["modified"])
    return {
        "label": label,
        "folder": str(folder),
        "started": line["started"],
        "command": line["command"],
        "commit": commit,
        "versions": versions,
        "machine": f"{line['ranks']} rank(s) on {line['device']}",
    }
