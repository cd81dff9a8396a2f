import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_imsr.data.dataset import DataConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.identity import differences, identity

CONFIG = TrainConfig(data=DataConfig(Path("data")), run_dir=Path("run"))
SHIPPED = EngineConfig().deepspeed.parent


def _identity(config, data="digest"):
    return identity(config, data, torch.device("cpu"))


def _changed(key, value):
    section, _, name = key.rpartition(".")
    changed = replace(getattr(CONFIG, section), **{name: value}) if section else None
    return replace(CONFIG, **({section: changed} if section else {name: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("seed", 1), ("model.dim", 8), ("strategy.name", "frozen"), ("batch.size", 7), ("training.epochs", 7)),
        *(("catalogue.learning_rate", 0.5), ("eval.top", [5]), ("engine.deepspeed", SHIPPED / "zero1.json")),
    ],
)
def test_what_makes_another_run_is_named(key, value):
    (said,) = differences(_identity(CONFIG), _identity(_changed(key, value)))
    assert said.startswith(f"{key} was ")


def test_other_data_are_named_wherever_they_stand():
    assert differences(_identity(CONFIG, "one"), _identity(CONFIG, "other")) == ["data was one and is other"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("run_dir", Path("other")), ("resume", "never"), ("overwrite", True), ("timeout_seconds", 1.0)),
        *(("data.path", Path("moved")), ("data.verify", True), ("batch.prefetch", 9), ("store.memory", "host")),
        *(
            ("catalogue.sharding", "planner"),
            ("catalogue.device_memory", 9),
            ("training.export", "every"),
            ("ranking.precision", "bf16"),
        ),
        *(("checkpoint.every_steps", 3), ("checkpoint.keep_last", 9)),
        *(("training.spans", 1), ("eval.per_user", True), ("engine.compile", True)),
    ],
)
def test_what_makes_no_other_run_is_allowed(key, value):
    assert differences(_identity(CONFIG), _identity(_changed(key, value))) == []


def test_a_checkpoint_from_before_a_key_was_there_did_as_its_default():
    older = _identity(CONFIG)
    del older["engine.tf32"]
    assert differences(older, _identity(CONFIG)) == []
    assert differences(older, _identity(_changed("engine.tf32", True))) == ["engine.tf32 was False and is True"]


def test_it_outlives_json_and_moved_settings(tmp_path):
    moved = tmp_path / "moved.json"
    moved.write_text((SHIPPED / "zero0.json").read_text())
    there = json.loads(json.dumps(_identity(CONFIG)))
    assert differences(there, _identity(_changed("engine.deepspeed", moved))) == []
