import json
from dataclasses import replace
from pathlib import Path

import pytest

from dist_imsr.data.dataset import DataConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.keys import keys_of, rules_of
from dist_imsr.model.detector import DetectorConfig
from dist_imsr.model.mimn import MIMNConfig
from dist_imsr.strategies.full_retraining import FullRetrainingConfig
from dist_imsr.strategies.imsr import IMSRConfig
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.identity import differences, identity, pretraining, read_keys

CONFIG = TrainConfig(data=DataConfig(Path("data")), run_dir=Path("run"))
SHIPPED = EngineConfig().deepspeed.parent
OLD = json.loads(Path(__file__).with_name("identity.json").read_text())
"""The identity in a checkpoint of `CONFIG` of an earlier version."""
LATER = ("training.incremental_epochs", "catalogue.incremental_learning_rate", "engine.incremental_learning_rate")
COUNTS = "strategy.full_retraining.interests_from"


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
def test_a_key_that_makes_another_run_is_named(key, value):
    (difference,) = differences(identity(CONFIG), identity(_changed(key, value)))
    assert difference.startswith(f"{key} was ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("run_dir", Path("other")),
            ("resume", "never"),
            ("overwrite", True),
            ("timeout_seconds", 1.0),
            ("step_timeout_seconds", 1.0),
        ),
        *(("data.path", Path("moved")), ("data.verify", True), ("batch.prefetch", 9), ("store.memory", "host")),
        *(
            ("catalogue.sharding", "planner"),
            ("catalogue.device_memory", 9),
            ("training.export", "every"),
            ("ranking.precision", "bf16"),
        ),
        *(("checkpoint.every_steps", 3), ("checkpoint.keep_last", 9)),
        *(
            ("training.spans", 1),
            ("training.until", "newest"),
            ("eval.per_user", True),
            ("engine.compile", True),
            ("profile", True),
        ),
        ("imports", ["a_module"]),
    ],
)
def test_a_free_key_makes_no_other_run(key, value):
    assert differences(identity(CONFIG), identity(_changed(key, value))) == []


def test_a_new_key_had_its_default_in_an_older_checkpoint():
    older = identity(CONFIG)
    del older["engine.tf32"]
    assert differences(older, identity(CONFIG)) == []
    assert differences(older, identity(_changed("engine.tf32", True))) == ["engine.tf32 was False and is True"]


def test_an_older_checkpoint_resumes():
    assert differences(OLD, identity(CONFIG)) == []
    assert identity(CONFIG) == OLD


def test_a_key_that_a_checkpoint_lacks_counts_as_its_default():
    older = {key: value for key, value in OLD.items() if key not in ("model.score", "batch.size", "eval.top", COUNTS)}
    assert differences(older, identity(CONFIG)) == []
    assert differences(older, identity(_changed("batch.size", 7))) == ["batch.size was 128 and is 7"]
    assert differences(older, identity(_changed("eval.top", [5]))) == ["eval.top was [20] and is [5]"]
    assert differences(pretraining(older), pretraining(OLD)) == []


@pytest.mark.parametrize(("older", "epochs"), [(False, 1), (True, None)])
def test_a_renamed_key_of_an_older_checkpoint_can_be_passed(older, epochs):
    there = {key: value for key, value in OLD.items() if key != "strategy.imsr.detector.epochs"}
    there["strategy.imsr.detector.each_epoch"] = older
    strategy = replace(CONFIG.strategy, imsr=IMSRConfig(detector=DetectorConfig(epochs=epochs)))
    assert differences(there, identity(replace(CONFIG, strategy=strategy))) == []
    assert read_keys(there) == read_keys(identity(replace(CONFIG, strategy=strategy)))  # as comparisons look for cells
    assert differences(there, identity(CONFIG)) == [f"strategy.imsr.detector.epochs was {epochs} and is 2"]


def test_keys_that_this_version_does_not_compare():
    assert differences(OLD | {"ranking.memory": 1}, identity(CONFIG)) == []  # free since
    assert differences(OLD | {"model.gone": 1}, identity(CONFIG)) == ["model.gone was 1 and is None"]


def test_keys_of_another_strategy_or_base_model_do_not_count():
    imsr = replace(CONFIG.strategy, imsr=IMSRConfig(rho=9.0))
    mimn = replace(CONFIG.model, mimn=MIMNConfig(memory=128))
    for name, found in (("fine_tuning", []), ("imsr", ["strategy.imsr.rho was 4.0 and is 9.0"])):
        one, other = (replace(section, name=name) for section in (CONFIG.strategy, imsr))
        assert differences(*(identity(replace(CONFIG, strategy=part)) for part in (one, other))) == found
    assert differences(identity(CONFIG), identity(replace(CONFIG, model=mimn))) == []


def test_strategies_share_one_pretraining_unless_it_depends_on_them():
    def of(**strategy):
        return pretraining(identity(replace(CONFIG, strategy=replace(CONFIG.strategy, **strategy))))

    counts, plain = FullRetrainingConfig(Path("counts")), pretraining(OLD)
    assert plain.keys() == {key for key in OLD if key == COUNTS or not key.startswith(("strategy.", *LATER))}
    assert of(name="frozen") == of(name="full_retraining") == of(full_retraining=counts) == plain
    assert of(name="full_retraining", full_retraining=counts) == plain | {COUNTS: "counts"}
    assert pretraining(identity(_changed("training.incremental_epochs", 9))) == plain
    assert pretraining(identity(_changed("engine.learning_rate", 9.0))) != plain


def test_every_key_is_free_or_kept():
    free = {key for key in keys_of(TrainConfig) if rules_of(TrainConfig, key).resume == "free"}
    assert free.isdisjoint(OLD)
    assert free | OLD.keys() == set(keys_of(TrainConfig))


def test_json_and_moved_settings_keep_theidentity(tmp_path):
    moved = tmp_path / "moved.json"
    moved.write_text((SHIPPED / "zero0.json").read_text())
    there = json.loads(json.dumps(identity(CONFIG)))
    assert differences(there, identity(_changed("engine.deepspeed", moved))) == []
