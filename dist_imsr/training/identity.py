"""Which keys make a run another run when they change; the fields of the configuration say so (`dist_imsr.keys`)."""

import dataclasses
from typing import Any

from dist_imsr.config import extended, plain
from dist_imsr.distributed.engine import read_settings
from dist_imsr.keys import default_of, is_read, rules_of
from dist_imsr.training.config import TrainConfig

_RENAMED = {"strategy.imsr.detector.each_epoch": ("strategy.imsr.detector.epochs", {False: 1, True: None})}
"""Keys of older checkpoints, with their present names and values."""


def identity(config: TrainConfig) -> dict[str, Any]:
    """The keys that determine the numbers of a run over its data, for the manifests of its checkpoints.

    Args:
        config: the whole tree.

    Returns:
        Plain values by dotted key; the contents of DeepSpeed's file replace its path.
    """
    values = by_key(plain(dataclasses.asdict(config)))
    kept = {key: value for key, value in values.items() if rules_of(type(config), key).resume != "free"}
    return kept | {"engine.deepspeed": read_settings(config.engine.deepspeed)}


def pretraining(identity: dict[str, Any]) -> dict[str, Any]:
    """The part of an identity that decides the result of pre-training.

    Args:
        identity: as `identity` returns it.

    Returns:
        Plain values by dotted key; the same for all strategies that can share one pre-trained model. A key that the
        chosen strategy does not read has its default.
    """
    tree, kept = extended(TrainConfig), {}
    for key, value in identity.items():
        if rules_of(tree, key).resume == "never":
            kept[key] = value if is_read(tree, key, identity) else plain(default_of(tree, key))
    return kept


def read_keys(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity, by present names, without the sections of strategies and base models that the run has not chosen."""
    tree, present = extended(TrainConfig), dict(identity)
    for key, (name, values) in _RENAMED.items():
        if key in present:
            present[name] = values[present.pop(key)]
    return {key: value for key, value in present.items() if is_read(tree, key, present)}


def differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Compares two identities by `read_keys`; a key that one of them lacks counts as its default.

    Args:
        there: of the run that wrote a checkpoint.
        here: of the run that would resume from it.

    Returns:
        A phrase for each key that differs.
    """
    tree, found = extended(TrainConfig), []
    there, here = read_keys(there), read_keys(here)
    for key in {**there, **here}:
        was, now = (values[key] if key in values else plain(default_of(tree, key)) for values in (there, here))
        if was != now and rules_of(tree, key).resume != "free":
            found.append(f"{key} was {was} and is {now}")
    return found


def by_key(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a tree of sections by key, with dots.

    Args:
        tree: as in config.yaml.
        prefix: of all keys.
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= by_key(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
