"""Runs that start from another run's pre-training, shortened runs that are continued, and results by user."""

import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.strategies import StrategyConfig
from dist_imsr.strategies.full_retraining import FullRetrainingConfig
from dist_imsr.training.checkpoint import CheckpointConfig, name_of, newest_first
from dist_imsr.training.config import TrainConfig, TrainingConfig
from tests.prepared import drawn_history, write_dataset
from tests.ranks import ranks_on
from tests.runs import run, timeless

PRETRAINED = name_of(1, 0, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), drawn_history(users=60, items=80, spans=4, longest=12))


def _config(folder, run_dir, strategy, base="comirec_dr", spans=None, **changes):
    return TrainConfig(
        data=DataConfig(folder),
        run_dir=run_dir,
        model=ModelConfig(base, dim=8, interests=3),
        strategy=StrategyConfig(strategy),
        batch=BatchConfig(size=16, max_history=10, max_targets=3, negatives=20, eval_size=16),
        catalogue=CatalogueConfig(headroom=0.05),
        training=TrainingConfig(epochs=3, incremental_epochs=3, patience=2, spans=spans),
        eval=EvalConfig([5], per_user=True),
        checkpoint=CheckpointConfig(keep_spans=9),
        **changes,
    )


def _same(found, wanted):
    assert len(found) == len(wanted) == 2
    for line, one in zip(found, wanted, strict=True):
        assert line == {
            key: pytest.approx(value, rel=1e-5, abs=1e-6) if isinstance(value, float) else value
            for key, value in one.items()
        }


def _users(run_dir):
    return {path.name: pq.read_table(path).to_pydict() for path in sorted((run_dir / "users").iterdir())}


@pytest.mark.parametrize(
    ("base", "names"),
    [("comirec_sa", ("frozen", "fine_tuning", "imsr", "sml")), ("comirec_dr", ("imsr", "full_retraining", "ader"))],
)
def test_every_strategy_resumes_from_one_pretraining(folder, tmp_path, base, names):
    with ranks_on(1) as ranks:
        pretrainer = {"frozen": "imsr", "fine_tuning": "frozen", "imsr": "fine_tuning", "full_retraining": "frozen"}
        pretrainer |= {"sml": "fine_tuning", "ader": "frozen"}
        begun = {
            name: _config(folder, tmp_path / f"begun-{name}", name, base, spans=0)
            for name in {pretrainer[name] for name in names}
        }
        for config in begun.values():
            assert ranks.call(run, config)[0][0] == []
            assert newest_first(config.run_dir / "checkpoints")[0].name == PRETRAINED
        for name in names:
            checkpoint = begun[pretrainer[name]].run_dir / "checkpoints" / PRETRAINED
            alone = _config(folder, tmp_path / f"alone-{name}", name, base)
            branch = replace(alone, run_dir=tmp_path / f"branch-{name}", resume=str(checkpoint))
            _same(ranks.call(run, branch)[0][0], ranks.call(run, alone)[0][0])


def test_only_keys_of_later_spans_may_differ(folder, tmp_path):
    frozen = _config(folder, tmp_path / "frozen", "frozen", spans=1)
    with ranks_on(1) as ranks:
        ranks.call(run, frozen)
        folders = {path.name: path for path in newest_first(frozen.run_dir / "checkpoints")}
        other = _config(folder, tmp_path / "other", "fine_tuning", resume=str(folders[PRETRAINED]))
        for changed, message in (
            (replace(other, seed=1), "seed was 0 and is 1"),
            (replace(other, catalogue=CatalogueConfig(learning_rate=0.5, headroom=0.05)), "catalogue.learning_rate"),
            (replace(other, training=replace(other.training, epochs=4)), "training.epochs was 3 and is 4"),
            (replace(other, resume=str(folders[name_of(2, 0, 0)])), "strategy.name was frozen and is fine_tuning"),
            (replace(other, run_dir=frozen.run_dir, resume="auto"), "strategy.name was frozen and is fine_tuning"),
        ):
            with pytest.raises(RuntimeError, match=message):
                ranks.call(run, changed)
        rates = replace(other.catalogue, incremental_learning_rate=0.5)
        later = replace(other, catalogue=rates, training=replace(other.training, incremental_epochs=1))
        assert len(ranks.call(run, later)[0][0]) == 2


def test_counts_of_interests_are_part_of_pretraining(folder, tmp_path):
    """full_retraining with ``interests_from`` pre-trains with other numbers of interests."""
    source = _config(folder, tmp_path / "source", "imsr")
    source = replace(source, training=replace(source.training, export="every"))
    counted = StrategyConfig("full_retraining", full_retraining=FullRetrainingConfig(source.run_dir))
    with ranks_on(1) as ranks:
        ranks.call(run, source)
        begun = replace(_config(folder, tmp_path / "begun", "full_retraining", spans=0), strategy=counted)
        ranks.call(run, begun)
        checkpoint = begun.run_dir / "checkpoints" / PRETRAINED
        tuned = replace(_config(folder, tmp_path / "tuned", "fine_tuning", resume=str(checkpoint)))
        with pytest.raises(RuntimeError, match=r"interests_from was .*source and is None"):
            ranks.call(run, replace(tuned, strategy=replace(counted, name="fine_tuning")))


def test_a_shortened_run_is_continued(folder, tmp_path):
    short = _config(folder, tmp_path / "short", "imsr", spans=1)
    with ranks_on(2) as ranks:
        wanted = ranks.call(run, _config(folder, tmp_path / "whole", "imsr"))
        assert len(ranks.call(run, short)[0][0]) == 1
        assert [path.name for path in (short.run_dir / "spans").iterdir()] == ["span=1"]
        assert ranks.call(run, replace(short, training=replace(short.training, spans=None))) == wanted
        with pytest.raises(RuntimeError, match=r"training\.spans: 3 is impossible here; expected at most 2"):
            ranks.call(run, _config(folder, tmp_path / "long", "imsr", spans=3))


def test_each_test_writes_its_users_again_after_a_kill(folder, tmp_path):
    whole = _config(folder, tmp_path / "whole", "fine_tuning")
    with ranks_on(2) as ranks:
        lines = ranks.call(run, whole)[0][0]
        wanted = _users(whole.run_dir)
        assert list(wanted) == ["span=2.parquet", "span=3.parquet"]
        for line, users in zip(timeless(lines), wanted.values(), strict=True):
            assert len(users["user"]) == line["users"]
            assert sum(users["hr@5"]) / line["users"] == pytest.approx(line["hr@5"])
        for checkpoint in newest_first(whole.run_dir / "checkpoints"):  # back to the end of span 1, and on from there
            if checkpoint.name > name_of(2, 0, 0):
                shutil.rmtree(checkpoint)
        (whole.run_dir / "users" / "span=3.parquet").write_bytes(b"torn")
        ranks.call(run, whole)
        assert _users(whole.run_dir) == wanted
        assert ranks.call(run, replace(whole, overwrite=True))[0][0] == lines
        assert _users(whole.run_dir) == wanted
