"""What makes a run the run that it is: the keys whose change would make another."""

import dataclasses
from typing import Any

import torch

from dist_imsr.config import plain
from dist_imsr.distributed.engine import read_settings
from dist_imsr.training.config import TrainConfig

# Where things stand, how fast they go and what is kept of them.
_HARMLESS = (
    *("run_dir", "resume", "overwrite", "timeout_seconds", "data.", "checkpoint.", "training.export"),
    *("batch.prefetch", "store.memory", "catalogue.sharding", "catalogue.device_memory", "engine.compile", "ranking."),
    *("training.spans", "eval.per_user", "profile"),
)
# What only the spans after pre-training read. No strategy changes pre-training: there are no existing interests yet.
_LATER = (
    *("strategy.", "training.incremental_epochs"),
    *("catalogue.incremental_learning_rate", "engine.incremental_learning_rate"),
)
# Keys that older checkpoints lack, and what their runs did.
_ADDED = {"engine.tf32": False}
_COUNTS = "strategy.full_retraining.interests_from"  # the one exception: how many interests users begin with


def identity(config: TrainConfig, data: str, device: torch.device) -> dict[str, Any]:
    """The keys that decide what a run's numbers are, with what they stand for.

    Args:
        config: the whole tree.
        data: the digest of the prepared data.
        device: where the run trains.

    Returns:
        Plain values by dotted key.
    """
    keys = _flat(plain(dataclasses.asdict(config)))
    kept = {key: value for key, value in keys.items() if not key.startswith(_HARMLESS)}
    resolved = {"data": data, "catalogue.optimizer": config.catalogue.optimizer_on(device)}
    return kept | resolved | {"engine.deepspeed": read_settings(config.engine.deepspeed)}


def pretraining(told: dict[str, Any]) -> dict[str, Any]:
    """The part of an identity that decides what pre-training leaves.

    Args:
        told: what `identity` gave.

    Returns:
        Plain values by dotted key; the same for all strategies that may begin from one pre-trained model.
    """
    counts = told.get(_COUNTS) if told.get("strategy.name") == "full_retraining" else None  # nobody else reads it
    return {key: value for key, value in told.items() if not key.startswith(_LATER)} | {_COUNTS: counts}


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Compares two identities.

    Args:
        there: of the run that left a checkpoint.
        here: of the run that would go on.

    Returns:
        A phrase for each key that differs.
    """
    there, here = _ADDED | there, _ADDED | here
    keys = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    return [f"{key} was {there.get(key)} and is {here.get(key)}" for key in keys]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
