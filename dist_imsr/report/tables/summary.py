"""What was reached, on what data, and with which configuration and versions."""

from collections import Counter, defaultdict
from collections.abc import Sequence
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
from dist_imsr.report.tables.statistics import interval, user_means
from dist_imsr.training.config import TrainConfig

_METRICS = ("hr@{}", "ndcg@{}", "hr@{}_unseen", "ndcg@{}_unseen")


def summary(sources: Sources) -> dict[str, pa.Table]:
    """Computes the section.

    Args:
        sources: runs and comparison.

    Returns:
        ``summary``: data, base, label, metric, mean over seeds and over the spans (their number) that all rows were
        tested on, low and high (95 percent, over users where there are files of users, else over seeds), over, versus
        (the reference), difference and p (paired over users).
        ``data_spans``: data, span, start, interactions, users, users_so_far, items (so far), and the shares new_users,
        new_items and repeats.
        ``settings``: key, value, default, of (the runs): where they differ from the defaults.
        ``environments``: label, folder, started, command, commit, versions, machine.
    """
    tables = {
        "summary": _metrics(sources),
        "data_spans": _data_spans(sources),
        "settings": _settings(sources),
        "environments": _environments(sources),
    }
    return {name: pa.Table.from_pylist(rows) for name, rows in tables.items() if rows}


def _metrics(sources: Sources) -> list[dict[str, Any]]:
    names = [one.format(sources.top) for one in _METRICS]
    rows = list[dict[str, Any]]()
    for group in sources.groups:
        records = sources.shared_records(group)
        labels = list(dict.fromkeys(record["label"] for record in records))
        users = {label: _user_means(sources, group, label, names) for label in labels}
        means = {label: _seed_means([one for one in records if one["label"] == label], names) for label in labels}
        for label in labels:
            for name in (one for one in names if one in means[label]):
                row = {"data": group.data, "base": group.base, "label": label, "metric": name}
                row |= {"spans": len({record["test_span"] for record in records}), "seeds": len(means[label][name])}
                row |= _interval(means[label][name], _values(users[label], name))
                rows.append(row | _difference(sources, group, label, name, means, users))
    return rows


def _seed_means(records: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, list[float]]:
    """The mean over spans of each seed, by metric."""
    found: dict[str, list[float]] = {}
    for name in names:
        by_seed = defaultdict(list)
        for record in records:
            if record.get(name) is not None:
                by_seed[record["seed"]].append(record[name])
        if by_seed:
            found[name] = [float(np.mean(values)) for values in by_seed.values()]
    return found


def _user_means(sources: Sources, group: Group, label: str, names: Sequence[str]) -> pa.Table | None:
    """Each user's mean over the shared tests and seeds; None if there are no files of users."""
    spans = sources.shared_spans(group)
    paths = [
        path
        for run in sources.runs
        if (run.group, run.label) == (group, label)
        for span in spans
        if (path := run.users_file(span)).is_file()
    ]
    return user_means(paths, names) if paths else None


def _values(users: pa.Table | None, name: str) -> np.ndarray:
    if users is None or name not in users.column_names:
        return np.empty(0)
    values = users[name].to_numpy()
    return values[~np.isnan(values)]


def _interval(seeds: Sequence[float], users: np.ndarray) -> dict[str, Any]:
    """The mean over spans and seeds, with the interval over users around it, or over seeds."""
    mean, values = float(np.mean(seeds)), users if len(users) else np.asarray(seeds)
    low, high = interval(values)
    shift = mean - float(np.mean(values))  # users count alike, whatever their number of tests
    return {
        "mean": mean,
        "low": None if low is None else low + shift,
        "high": None if high is None else high + shift,
        "over": "users" if len(users) else "seeds",
    }


def _difference(
    sources: Sources,
    group: Group,
    label: str,
    name: str,
    means: dict[str, dict[str, list[float]]],
    users: dict[str, pa.Table | None],
) -> dict[str, Any]:
    """The difference from the reference, and a paired test over the users that both have."""
    reference = sources.reference
    if reference in (None, label) or name not in means.get(reference, {}) or not sources.same_tests(group, label):
        return {"versus": None, "difference": None, "p": None}
    p, mine, its = None, users[label], users[reference]
    if mine is not None and its is not None and name in mine.column_names and name in its.column_names:
        both = mine.select(["user", name]).join(its.select(["user", name]), "user", join_type="inner", right_suffix="_")
        differences = both[name].to_numpy() - both[f"{name}_"].to_numpy()
        p = paired(differences[~np.isnan(differences)]).p
    return {
        "versus": reference,
        "difference": float(np.mean(means[label][name]) - np.mean(means[reference][name])),
        "p": p,
    }


def _data_spans(sources: Sources) -> list[dict[str, Any]]:
    rows = []
    for group in {one.data: one for one in sources.groups}.values():
        run = next(run for run in sources.runs if run.group == group)
        try:
            rows += [{"data": group.data} | row for row in _spans(run.dataset)]
        except Missing as reason:
            sources.note(reason)
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
                "users_so_far": users,
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
    """A row for each value of a key that is not the default, with the runs that have it."""
    tree, found = extended(TrainConfig), defaultdict(list)
    runs = list(sources.first_runs())
    for run in runs:
        for key, value in run.values.items():
            default = plain(default_of(tree, key))
            if key not in ("run_dir", "data.path", "seed") and value != default and is_read(tree, key, run.values):
                found[key, str(value), str(default)].append(run)
    whole = Counter(run.label for run in runs)
    rows = []
    for (key, value, default), own in sorted(found.items()):
        counts = Counter(run.label for run in own)
        labels = [label for label in counts if counts[label] == whole[label]]
        labels += [f"{run.label} ({run.group.title})" for run in own if run.label not in labels]
        of = "all" if len(own) == len(runs) else ", ".join(labels)
        rows.append({"key": key, "value": value, "default": default, "of": of})
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
