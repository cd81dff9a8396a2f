"""Baselines in the tests of a run, to be shown under its table."""

import json
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from dist_imsr.baselines.measure import measure_baselines
from dist_imsr.baselines.own_history import OwnHistoryConfig
from dist_imsr.baselines.popular import PopularConfig
from dist_imsr.baselines.report import mean_line, rates
from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.topology import Topology
from dist_imsr.files import write_whole
from dist_imsr.phases import Phase
from dist_imsr.training.config import TrainConfig

_FILE = "baselines.jsonl"


@Phase("baselines")
def add_baselines(config: TrainConfig, dataset: Dataset, spans: Sequence[int], topology: Topology) -> None:
    """Tests popular items and own histories on the spans that a run was tested on, and keeps their lines; collective.

    Args:
        config: the whole tree.
        dataset: the prepared data.
        spans: the trained spans that were tested on the next one; those whose lines are kept already cost nothing.
        topology: this rank's place.
    """
    if not config.baselines or dataset.first_kept:
        return
    kept = [_kept(config, dataset, spans)]
    dist.broadcast_object_list(kept)  # rank 0 reads what it writes
    left = [span for span in spans if span not in {line["span"] for line in kept[0]}]
    sections = {"popular": PopularConfig(), "own_history": OwnHistoryConfig()}
    found = measure_baselines(sections, dataset=dataset, spans=left, topology=topology, config=config.eval)
    lines = [line | {"data": _digest(dataset, line)} for line in found]
    if left and topology.rank == 0:
        text = "".join(json.dumps(line) + "\n" for line in [*kept[0], *lines])
        write_whole(config.run_dir / _FILE, text)


def describe_baselines(config: TrainConfig, dataset: Dataset, spans: Sequence[int]) -> str:
    """Two lines with the means over the spans that a run was tested on, or why there are none; empty if not wanted.

    Args:
        config: the whole tree.
        dataset: the prepared data.
        spans: as in `add_baselines`.
    """
    if not config.baselines or not spans:
        return ""
    lines, names = _kept(config, dataset, spans), rates(config.eval.top)
    if {line["span"] for line in lines} != set(spans):
        reason = (
            dataset.retired_rows
            if dataset.first_kept
            else f"{config.run_dir} lacks some lines of {_FILE}; launch/baselines.py measures them"
        )
        return f"Baselines in these tests are not shown: {reason}."
    texts = []
    for name, what in (("popular", "the popular items of the span before"), ("own_history", "each user's own items")):
        means = mean_line([line for line in lines if line["strategy"] == name], names)
        values = ", ".join(f"{key} {'-' if value is None else f'{value:.4f}'}" for key, value in means.items())
        texts.append(f"Baseline {name} ({what}), mean over these spans: {values}.")
    return "\n".join(texts)


def _digest(dataset: Dataset, line: dict[str, Any]) -> str:
    """The digest of the data that a line depends on."""
    return dataset.digest_until(line["test_span"])


def _kept(config: TrainConfig, dataset: Dataset, spans: Sequence[int]) -> list[dict[str, Any]]:
    """The lines of some spans that were measured on these data."""
    path = config.run_dir / _FILE
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [line for line in lines if line["span"] in spans and line["data"] == _digest(dataset, line)]
