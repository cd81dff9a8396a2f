import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dist_imsr.data.dataset import Dataset
from dist_imsr.data.replay import ReplayedSpan
from dist_imsr.distributed.objective import score_batch
from dist_imsr.strategies import StrategyConfig
from dist_imsr.strategies.ader import ADERConfig, adaptive_weight, herding, top_per_owner
from dist_imsr.training.trainer import Trainer
from tests.prepared import drawn_history, write_dataset
from tests.ranks import ranks_on, run_ranks
from tests.runs import run
from tests.training.test_checkpoint import _config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), drawn_history(users=60, items=80, spans=4, longest=12))


def test_the_weight_adapts():
    items = {"items_before": 90, "items": 100}
    weight = adaptive_weight(0.8, **items, exemplars=50, sequences=200)
    assert weight == pytest.approx(0.8 * math.sqrt(0.9 * 0.25))
    assert adaptive_weight(0.8, **items, exemplars=0, sequences=0) == 0


def _vectors(seed=0):
    draw = np.random.default_rng(seed)
    return torch.from_numpy(draw.normal(size=(40, 3))), torch.from_numpy(np.sort(draw.integers(9, size=40)))


@pytest.mark.parametrize("most", [1, 3, 50])
def test_the_best_of_each_owner(most):
    vectors, owners = _vectors()
    values = vectors[:, 0]
    chosen = top_per_owner(values, owners, most)
    for owner in owners.unique():
        mine = (owners == owner).nonzero().flatten()
        wanted = mine[values[mine].argsort(descending=True)[:most]]
        assert mine[chosen[mine]].tolist() == sorted(wanted.tolist())


@pytest.mark.parametrize("most", [1, 2, 4, 50])
def test_herding_equals_the_slow_reference(most):
    vectors, owners = _vectors(1)
    chosen = herding(vectors, owners, most)
    for owner in owners.unique():
        mine = (owners == owner).nonzero().flatten().tolist()
        mean, taken = np.mean([vectors[one].numpy() for one in mine], axis=0), []
        while len(taken) < min(most, len(mine)):
            gaps = {
                one: np.linalg.norm(mean - np.mean([vectors[other].numpy() for other in [*taken, one]], axis=0))
                for one in mine
                if one not in taken
            }
            taken.append(min(gaps, key=gaps.get))
        assert [one for one in mine if chosen[one]] == sorted(taken)


def test_an_empty_pool():
    nothing = torch.empty(0, 3), torch.empty(0, dtype=torch.int64)
    assert not len(herding(*nothing, 2))
    assert not len(top_per_owner(nothing[0][:, 0], nothing[1], 2))


def _ader(folder, run_dir, **options):
    return _config(folder, run_dir, strategy=StrategyConfig("ader", ader=ADERConfig(**options)))


def test_an_empty_pool_and_no_weight_are_fine_tuning(folder, tmp_path):
    with ranks_on(2) as ranks:
        replayed = ranks.call(run, _ader(folder, tmp_path / "ader", pool=0, weight=0.0))
        tuned = ranks.call(run, _config(folder, tmp_path / "ft", strategy=StrategyConfig("fine_tuning")))
    for (lines, state), (wanted, bits) in zip(replayed, tuned, strict=True):
        assert [line | {"strategy": "fine_tuning"} for line in lines] == wanted
        assert {name: digest for name, digest in state.items() if not name.startswith("companion.")} == bits


def test_replay_and_teacher_change_the_result(folder, tmp_path):
    options = [{}, {"weight": 0.0}, {"choice": "herding", "exemplars": 2}, {"pool": 0}]
    with ranks_on(1) as ranks:
        configs = (_ader(folder, tmp_path / str(at), **one) for at, one in enumerate(options))
        lines = [ranks.call(run, config)[0][0] for config in configs]
    losses = [tuple(line["loss"] for line in each) for each in lines]
    assert len(set(losses)) == len(options)
    assert all(line["retention_loss"] > 0 for line in lines[0])
    assert all(line["retention_loss"] == 0 for each in (lines[1], lines[3]) for line in each)


@pytest.mark.parametrize("base", ["mind", "comirec_sa"])
def test_other_world_sizes_give_the_same_numbers(folder, tmp_path, base):
    config = _ader(folder, tmp_path / "one")
    config = replace(config, model=replace(config.model, base=base))
    (wanted, _), *_ = run_ranks(1, run, config)
    (found, _), *_ = run_ranks(3, run, replace(config, run_dir=tmp_path / "three"))
    for line, one in zip(found, wanted, strict=True):
        for key in ("loss", "retention_loss", "validation", "ndcg@5"):
            assert line[key] == pytest.approx(one[key], rel=1e-3, abs=1e-4), key


def _first_step(topology, config):
    """The distillation of a span's first batch, before and after the live model moves, and the teacher's table."""
    config.run_dir.mkdir(exist_ok=True)
    trainer = Trainer(config, Dataset(config.data), topology)
    trainer.train_span(0)
    model, strategy, spans = trainer.model, trainer.strategy, trainer.spans
    spans.add_items(1)
    data = spans.open_span(1, ReplayedSpan, pool=config.strategy.ader.pool)
    spans.admit_users(data)
    strategy.initialize_state(model)
    strategy.choose_exemplars(spans, data)
    batch = next(one for one in data.training(0) if one.replayed)
    losses = []
    for _ in range(2):
        extraction = model.extract(batch)
        scores = score_batch(
            batch, model.scoring.queries(extraction.interests), extraction.targets, extraction.negatives
        )
        losses.append(strategy.extra_loss(model, batch, extraction, scores).item())
        model.train_step(batch)
    return losses, torch.equal(strategy.teacher.table.flushed_weight(), model.catalogue.flushed_weight())


def test_the_teacher_is_the_model_of_the_span_before(folder, tmp_path):
    ((losses, same),) = run_ranks(1, _first_step, _ader(folder, tmp_path / "run"))
    assert losses[0] == pytest.approx(0, abs=1e-5)
    assert losses[1] > 1e-4
    assert not same
