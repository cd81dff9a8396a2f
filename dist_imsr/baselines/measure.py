"""Tests baselines on each span, with the users and the metrics of a run's tests."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dist_imsr.baselines.ials import IALS, IALSConfig
from dist_imsr.baselines.item_knn import ItemKNN, ItemKNNConfig
from dist_imsr.baselines.known import Baseline, Known
from dist_imsr.baselines.own_history import OwnHistory, OwnHistoryConfig
from dist_imsr.baselines.popular import Popular, PopularConfig
from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.metrics import Metrics
from dist_imsr.evaluation.parts import JointFile
from dist_imsr.evaluation.user_table import user_table

logger = logging.getLogger(__name__)

BASELINES: dict[str, tuple[Callable[[Known, Any], Baseline], type]] = {
    "popular": (Popular, PopularConfig),
    "own_history": (OwnHistory, OwnHistoryConfig),
    "item_knn": (ItemKNN, ItemKNNConfig),
    "ials": (IALS, IALSConfig),
}
"""Classes and sections by name."""


def check_kept(dataset: Dataset) -> None:
    """Refuses data with retired spans.

    Raises:
        ValueError: with the reason and what to do.
    """
    if dataset.first_kept:
        raise ValueError(
            f"baselines: they need what users met in all earlier spans, but {dataset.retired_rows}: prepare the "
            "whole log again, into another folder"
        )


def measure_baselines(
    sections: Mapping[str, Any],
    *,
    dataset: Dataset,
    spans: Sequence[int],
    topology: Topology,
    config: EvalConfig,
    users: Path | None = None,
) -> list[dict[str, Any]]:
    """Tests each baseline on the span after each of some spans; collective.

    Args:
        sections: the baselines' sections by name.
        dataset: the prepared data.
        spans: the last ones that baselines may look at, at least 1.
        topology: ranks.
        config: the metrics.
        users: a folder for the metrics of each tested user, ``span=T.parquet`` for the test on span T; for a single
            baseline.

    Returns:
        The keys of metrics.jsonl of each span and baseline.

    Raises:
        ValueError: for retired rows.
    """
    check_kept(dataset)
    lines = list[dict[str, Any]]()
    for span in spans:
        known = Known(dataset, span, topology, max(config.top))
        for name, section in sections.items():
            begin = time.perf_counter()
            baseline = BASELINES[name][0](known, section)
            seconds = time.perf_counter() - begin
            metrics = _test(baseline, known, config, users and users / f"span={span + 1}.parquet")
            line = {"strategy": name, "span": span, "test_span": span + 1, **metrics, **baseline.facts}
            lines.append(line | {"train_seconds": seconds, "eval_seconds": time.perf_counter() - begin - seconds})
            logger.info("%s: tested on span %d in %.1f s", name, span + 1, time.perf_counter() - begin)
    return lines


def _test(baseline: Baseline, known: Known, config: EvalConfig, per_user: Path | None) -> dict[str, Any]:
    """The metrics of a baseline on the span after the known ones."""
    dataset, topology, metrics = known.dataset, known.topology, Metrics(config.top)
    data = known.open(known.span + 1)
    batches = data.testing(lambda users: dataset.known(users, known.span), config.max_users)
    with JointFile(per_user, topology) if per_user else nullcontext() as file:
        for batch in batches:
            ranks = baseline.ranks(batch.users, batch.targets)
            if config.exclude_seen:
                ranks = ranks.without_seen()
            values = metrics.add(batch, ranks)
            if file:
                file.write(user_table(dataset, batch, ranks.all_items, values, config.top))
    topology.sum(metrics.sums)
    return metrics.result()
