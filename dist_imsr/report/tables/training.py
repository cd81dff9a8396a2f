"""How training went: losses, seconds, memory, speed."""

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_imsr.report.sources import Missing, Run, Sources
from dist_imsr.report.tables.statistics import thin

_LOSSES = ("train/loss", "train/retention_loss")


def training(sources: Sources) -> dict[str, pa.Table]:
    """Computes the section, of each label's run with the smallest seed.

    Args:
        sources: runs and comparison.

    Returns:
        ``training_curves``: data, base, label, tag, step, value; long curves are thinned (`thin`).
        ``training_seconds``: .., span, phase, seconds (means over ranks; the phases add up to the span's).
        ``training_memory``: .., rank, phase, peak (bytes; the largest of all spans).
        ``training_speed``: .., span, seconds (of training), interactions and per_second.

    Raises:
        Missing: if no run has trained a span yet.
    """
    computed = {"curves": _curves, "seconds": _seconds, "memory": _memory, "speed": _speed}
    runs = list(sources.first_runs())
    rows = {f"training_{name}": [row for run in runs for row in act(run)] for name, act in computed.items()}
    if not any(rows.values()):
        raise Missing("no run has trained a span to its end yet")
    return {name: pa.Table.from_pylist(found) for name, found in rows.items() if found}


def _curves(run: Run) -> list[dict[str, Any]]:
    folder = run.folder / "events"
    if not folder.is_dir():
        return []
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    rows = []
    for tag in events.Tags()["scalars"]:
        if tag not in _LOSSES and not tag.startswith("validation/"):
            continue
        scalars = events.Scalars(tag)
        steps, values = (np.array([getattr(one, name) for one in scalars], float) for name in ("step", "value"))
        if tag == "train/retention_loss" and not values.any():
            continue
        steps, values = thin(steps, values)
        rows += [
            run.columns | {"tag": tag, "step": float(step), "value": float(value)}
            for step, value in zip(steps, values, strict=True)
        ]
    return rows


def _seconds(run: Run) -> list[dict[str, Any]]:
    return [
        run.columns | {"span": line["span"], "phase": phase, "seconds": seconds["mean"]}
        for line in run.phases
        for phase, seconds in line["seconds"].items()
        if "/" not in phase
    ]


def _memory(run: Run) -> list[dict[str, Any]]:
    peaks: defaultdict[tuple[int, str], int] = defaultdict(int)
    for line in run.phases:
        for phase, memory in line["memory"].items():
            for rank, peak in enumerate(memory["peak"]):
                peaks[rank, phase] = max(peaks[rank, phase], peak or 0)
    return [run.columns | {"rank": rank, "phase": phase, "peak": peak} for (rank, phase), peak in peaks.items() if peak]


def _speed(run: Run) -> list[dict[str, Any]]:
    rows = []
    for line in run.lines:
        try:
            interactions = run.dataset.entries[line["span"]].interactions
        except Missing:
            interactions = None
        seconds = line["train_seconds"]
        speed = interactions / seconds if interactions and seconds else None
        rows.append(
            run.columns | {"span": line["span"], "seconds": seconds, "interactions": interactions, "per_second": speed}
        )
    return rows
