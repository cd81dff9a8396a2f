import itertools
import logging
import math
from dataclasses import replace

import pytest
import torch

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.distributed.interest_store import InterestStoreConfig, Slots
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.model.detector import DetectorConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.retainers import RetainerConfig
from dist_imsr.model.trimmer import TrimmerConfig
from dist_imsr.strategies import STRATEGIES, Strategy, StrategyConfig, build_strategy
from dist_imsr.strategies.imsr import IMSRConfig
from dist_imsr.training.config import TrainConfig, TrainingConfig
from dist_imsr.training.trainer import Trainer
from tests.prepared import drawn_history, write_dataset
from tests.ranks import run_ranks

BF16 = EngineConfig().deepspeed.with_name("bf16.json")
HISTORY = drawn_history(users=60, items=80, spans=4, longest=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), HISTORY)


def _growing(**detector):
    """IMSR that creates, refuses, keeps and trims on a history this small."""
    shared = {"measure": "divergence", "rule": "mean", "c1": 0.02, "untrained": True, "delta_k": 2, "k_max": 5}
    config = IMSRConfig(
        1.0,
        DetectorConfig(**(shared | detector)),
        TrimmerConfig(c2=0.1),
        RetainerConfig(weight=0.5),
    )
    return StrategyConfig("imsr", config)


def _config(folder, run_dir, **changes):
    sections = {
        "model": ModelConfig(dim=8, interests=3),
        "strategy": StrategyConfig("fine_tuning"),
        "batch": BatchConfig(size=16, max_history=10, max_targets=3, negatives=20, eval_size=16),
        "catalogue": CatalogueConfig(headroom=0.0),  # later spans outgrow it
        "training": TrainingConfig(epochs=4, incremental_epochs=3, patience=2),
        "eval": EvalConfig([5]),
    }
    return TrainConfig(data=DataConfig(folder), run_dir=run_dir, **(sections | changes))


def _run(topology, config):
    config.run_dir.mkdir(exist_ok=True)
    trainer, losses = Trainer(config, Dataset(config.data), topology), []
    trainer.model.engine.log = lambda values, step: losses.extend(values.values())
    names = ("strategy", "base", "train_seconds", "eval_seconds")
    lines = [{key: value for key, value in line.items() if key not in names} for line in trainer.run()]
    store = trainer.model.store
    for line in lines:
        line.pop("store_bytes")  # counts one more offset a rank
    owners, values = store.owned.users(store.owners.cpu()), store.values.cpu()
    return losses, lines, owners, values, trainer.model.catalogue.capacity


@pytest.mark.parametrize(
    ("base", "strategy", "world_sizes"),
    [
        ("comirec_dr", StrategyConfig("fine_tuning"), (4,)),
        ("comirec_dr", StrategyConfig("full_retraining"), (3,)),
        ("comirec_dr", _growing(), (2, 3, 4)),
        ("comirec_sa", _growing(epochs=None), (3,)),
        ("mind", _growing(), (2,)),
    ],
)
def test_world_size_changes_nothing(folder, tmp_path, base, strategy, world_sizes):
    def config(name):
        return _config(folder, tmp_path / name, model=ModelConfig(base, dim=8, interests=3), strategy=strategy)

    (alone,) = run_ranks(1, _run, config("1"))
    assert len(alone[0]) > 20
    assert [line["span"] for line in alone[1]] == [1, 2]
    if strategy.name == "imsr":
        assert all(sum(line[f"interests_{what}"] for line in alone[1]) for what in ("kept", "trimmed", "refused"))
    for world_size in world_sizes:
        ranks = run_ranks(world_size, _run, config(str(world_size)))
        owners, interests = (torch.cat(column) for column in list(zip(*ranks, strict=True))[2:4])
        owners, order = owners.sort(stable=True)
        assert torch.equal(owners, alone[2])
        # Adagrad divides a query's first gradients by their own size, be they mere rounding.
        # So does a row's bias, whose gradients nearly cancel for an item that is target and negative alike.
        atol = {"comirec_sa": 1e-3, "mind": 3e-3}.get(base, 3e-4)
        torch.testing.assert_close(interests[order], alone[3], rtol=1e-3, atol=atol)
        for losses, lines, *_ in ranks:
            assert losses == pytest.approx(alone[0], rel=1e-4)
            _compare(lines, alone[1], 1e-4, atol)


def _compare(lines, expected, rel, atol, hits=0.0):
    """Compares lines of metrics.jsonl, whose counts must be equal; rates may differ by ``hits`` users."""
    for found, wanted in zip(lines, expected, strict=True):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            # A projection leaves small differences of interests, which are compared as these are.
            near = {"rel": 10 * rel, "abs": atol} if name.startswith("norm_") else {"rel": rel, "abs": 1e-6}
            if name.startswith("fit_p"):
                near["abs"] = 2e-4  # a bin of the histogram
            if name.startswith(("hr@", "ndcg@")):
                few = 5 if name.endswith(("_new", "_existing")) else 1  # of a part of the users
                near["abs"] = max(1e-6, few * hits / max(wanted["users"], 1))
            assert found[name] == (None if value is None else pytest.approx(value, **near)), name


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("base", "strategy", "optimizer"),
    [
        ("comirec_dr", StrategyConfig("fine_tuning"), "adagrad"),
        ("comirec_dr", _growing(), "rowwise_adagrad"),
        ("comirec_sa", StrategyConfig("fine_tuning"), "rowwise_adagrad"),
        ("comirec_sa", _growing(epochs=None), "rowwise_adagrad"),
        ("mind", StrategyConfig("fine_tuning"), "rowwise_adagrad"),
        ("mind", _growing(), "adagrad"),
    ],
)
def test_a_device_trains_like_the_host(folder, tmp_path, base, strategy, optimizer):
    """The losses of all steps and the lines of all spans, with ten times the tolerance between world sizes.

    A device sums in another order, as other world sizes do, and it also rounds logarithms, roots and quotients
    differently at each of hundreds of steps.
    """
    model, table = ModelConfig(base, dim=8, interests=3), CatalogueConfig(optimizer=optimizer, headroom=0.0)
    config = _config(folder, tmp_path / "host", model=model, strategy=strategy, catalogue=table)
    (wanted,) = run_ranks(1, _run, config)
    atol = 1e-2 if base == "comirec_sa" else 1e-3  # Adagrad's first steps, as between numbers of ranks
    for memory in ("device", "host"):
        on_device = replace(config, run_dir=tmp_path / memory, store=InterestStoreConfig(memory=memory))
        (found,) = run_ranks(1, _run, on_device, device="cuda")
        assert found[0] == pytest.approx(wanted[0], rel=1e-3)
        _compare(found[1], wanted[1], 1e-3, atol, hits=1.5)  # of two scores that rounding brings level
        assert torch.equal(found[2], wanted[2])
        torch.testing.assert_close(found[3], wanted[3], rtol=1e-2, atol=atol)


@pytest.mark.cuda
def test_a_device_trains_in_bf16_nearly_as_the_host_in_fp32(folder, tmp_path):
    """bf16 has 8 bits, an error of 1/256 in each product: losses agree within 10 %, their mean within 2 %."""
    config = _config(folder, tmp_path / "host", catalogue=CatalogueConfig(optimizer="adagrad", headroom=0.0))
    config.training.patience = 0  # the same number of steps, whatever validation says
    (wanted,) = run_ranks(1, _run, config)
    half = replace(config, run_dir=tmp_path / "device", engine=EngineConfig(BF16))
    (found,) = run_ranks(1, _run, half, device="cuda")
    assert found[0] == pytest.approx(wanted[0], rel=0.1)
    assert sum(found[0]) == pytest.approx(sum(wanted[0]), rel=0.02)
    assert found[0] != pytest.approx(wanted[0], rel=1e-5)


def test_same_seed_same_bits_and_another_seed_other_bits(folder, tmp_path):
    first = run_ranks(2, _run, _config(folder, tmp_path / "a"))
    again = run_ranks(2, _run, _config(folder, tmp_path / "b"), fresh=True)
    other = run_ranks(2, _run, _config(folder, tmp_path / "c", seed=1))
    for one, two, three in zip(first, again, other, strict=True):
        assert one[0] == two[0]
        assert one[1] == two[1]
        assert torch.equal(one[3], two[3])
        assert not torch.equal(one[3], three[3])


def _train_span(trainer, span):
    """Trains a span from its beginning."""
    trainer.spans.progress = trainer.progress.at(span)
    return trainer.strategy.train_span(trainer.spans, span)


def _restart(topology, config):
    """The state after a span, and after it is trained again from the state before it."""
    config.run_dir.mkdir(exist_ok=True)
    trainer = Trainer(config, Dataset(config.data), topology)
    _train_span(trainer, 0)
    trainer.spans.add_items(1)
    store, before, left = trainer.model.store, trainer.model.snapshot(), []
    owners, vectors = store.owners, [column.clone() for column in store.slots]  # a snapshot lasts until the span ends
    for _ in range(2):
        report = _train_span(trainer, 1)
        report.pop("train_seconds")
        after = trainer.model.snapshot()
        left.append(
            (
                report,
                [
                    *(rows.values for rows in after.tensors.values()),
                    after.store.offsets,
                    *map(torch.clone, store.slots),
                ],
            )
        )
        store.load(owners, **Slots(*map(torch.clone, vectors))._asdict())
        trainer.model.restore(before)
    return left


@pytest.mark.parametrize("base", ["comirec_dr", "comirec_sa"])
def test_a_span_trained_again_ends_with_the_same_bits(folder, tmp_path, base):
    model, strategy = ModelConfig(base, dim=8, interests=3), _growing()
    for first, again in run_ranks(2, _restart, _config(folder, tmp_path / "run", model=model, strategy=strategy)):
        assert first[0] == again[0]
        assert first[0]["interests_kept"] > 0
        assert all(torch.equal(one, two) for one, two in zip(first[1], again[1], strict=True))


def _reported(topology, config):
    """The report of a span, and the interests before and after it by row."""
    config.run_dir.mkdir(exist_ok=True)
    trainer = Trainer(config, Dataset(config.data), topology)
    _train_span(trainer, 0)
    trainer.spans.add_items(1)
    store = trainer.model.store
    before = store.counts.clone()
    report = _train_span(trainer, 1)
    return (
        report,
        before,
        store.counts,
        store.birth_span.split(store.counts.tolist()),
        store.values.split(store.counts.tolist()),
    )


@pytest.mark.parametrize(
    "detector", [{}, {"epochs": 1}, {"epochs": None}, {"rule": "count", "items": 2}, {"enabled": False}]
)
def test_every_created_interest_is_kept_trimmed_or_refused(folder, tmp_path, detector):
    strategy = _growing(**detector)
    ((report, before, after, birth_span, values),) = run_ranks(
        1, _reported, _config(folder, tmp_path / "run", strategy=strategy)
    )
    known = before > 0
    assert report["interests_created"] == report["interests_kept"] + report["interests_trimmed"]
    requested = report["puzzled_users"] * strategy.imsr.detector.delta_k
    assert report["interests_created"] + report["interests_refused"] == requested
    assert report["interests_kept"] == (after - before)[known].sum()
    assert bool(requested) == strategy.imsr.detector.enabled
    assert after.max() <= 5
    for row in known.nonzero().flatten().tolist():
        assert birth_span[row].tolist() == sorted(birth_span[row].tolist())
        assert (values[row][birth_span[row] == 1].norm(dim=1) >= 0.1).all()
    newcomers = (before == 0) & (after > 0)
    assert newcomers.any()
    assert (after[newcomers] == 3).all()


def _trained_spans(topology, config):
    """The interests of each of this rank's users, and the table, after each span."""
    config.run_dir.mkdir(exist_ok=True)
    trainer = Trainer(config, Dataset(config.data), topology)
    states = []
    for span in range(3):
        trainer.spans.add_items(span)
        _train_span(trainer, span)
        store = trainer.model.store
        interests = store.values.clone().split(store.counts.tolist())
        users = store.owned.users(torch.arange(len(interests))).tolist()
        states.append((dict(zip(users, interests, strict=True)), trainer.model.catalogue.flushed_weight().clone()))
    return states


def test_inactive_users_keep_their_bytes(folder, tmp_path):
    for states in run_ranks(2, _trained_spans, _config(folder, tmp_path / "run")):
        for span, ((before, _), (after, _)) in enumerate(itertools.pairwise(states), 1):
            for user, new in after.items():
                old = before.get(user, torch.empty(0, 8))
                if user in HISTORY and HISTORY[user][span]:
                    assert len(new) == 3
                    assert not torch.equal(old, new)
                else:
                    assert torch.equal(old, new)


def test_frozen_changes_nothing_after_span_0(folder, tmp_path):
    config = _config(folder, tmp_path / "run", strategy=StrategyConfig("frozen"))
    (((interests, table), *later),) = run_ranks(1, _trained_spans, config)
    for others, weight in later:
        assert all(torch.equal(new, interests.get(user, new[:0])) for user, new in others.items())
        assert torch.equal(weight[: len(table)], table)


def test_strategies_are_tested_on_the_same_users(folder, tmp_path):
    seen, short = [], TrainingConfig(epochs=1, incremental_epochs=1)
    for name in STRATEGIES:
        config = _config(folder, tmp_path / name, strategy=StrategyConfig(name), training=short)
        ((_, lines, *_),) = run_ranks(1, _run, config)
        seen.append([line["users"] for line in lines])
    late = {user for user, spans in HISTORY.items() if not spans[0]}
    assert late  # frozen has no interests for them
    met = [
        sum(len(spans[span + 1]) >= 3 and any(map(len, spans[: span + 1])) for spans in HISTORY.values())
        for span in (1, 2)
    ]
    assert seen == [met] * len(STRATEGIES)


def _best(topology, config):
    config.run_dir.mkdir(exist_ok=True)
    trainer, seen = Trainer(config, Dataset(config.data), topology), []
    trainer.model.engine.log = lambda values, step: seen.extend(values.items())
    # Otherwise validation would start from the interests of this very span.
    trainer.spans.write_back = lambda data, objective: None
    _train_span(trainer, 0)
    restored = trainer.spans.validate(trainer.spans.open_span(0), trainer.strategy)
    return [value for name, value in seen if name.startswith("validation")], restored, trainer.spans.last_good_state


@pytest.mark.parametrize("rate", [0.05, 3.0])
def test_the_best_state_is_restored(folder, tmp_path, rate):
    config = _config(folder, tmp_path / "run", catalogue=CatalogueConfig(learning_rate=rate))
    config.training = TrainingConfig(epochs=12, patience=2)
    for qualities, restored, good in run_ranks(2, _best, config):
        assert restored == pytest.approx(max(qualities))
        assert len(qualities) == 12 or len(qualities) - 1 - qualities.index(max(qualities)) == 2
        assert good == "span 0, trained"


def test_spans_without_validation_or_training_targets(tmp_path):
    short = {user: [spans[0], spans[1][:2], spans[2][:1], spans[3]] for user, spans in HISTORY.items()}
    config = _config(write_dataset(tmp_path / "data", short), tmp_path / "run")
    for losses, lines, *_ in run_ranks(2, _run, config):
        assert [line["loss"] is None for line in lines] == [False, True]
        # Validations: all epochs of span 1, and one of span 2, which has nothing to train on.
        assert sum(math.isnan(loss) for loss in losses) == config.training.incremental_epochs + 1
        assert lines[0]["users"] == 0
        assert lines[0]["hr@5"] is None


def _train_nothing(topology, config):
    """Trains span 2, in which nothing can be trained: whether parameters are equal, the report, the warnings."""
    trainer, warnings, handler = Trainer(config, Dataset(config.data), topology), [], logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("dist_imsr").addHandler(handler)
    for span in (0, 1):
        trainer.spans.progress = trainer.spans.progress.at(span)
        trainer.train_span(span)
    trainer.spans.add_items(2)
    before = {name: rows.values.clone() for name, rows in trainer.model.tensors().items()}
    warnings.clear()
    report = trainer.train_span(2)
    after = {name: rows.values for name, rows in trainer.model.tensors().items()}
    for tensors in (before, after):  # biases start from popularity in each span, whether it is trained or not
        tensors["catalogue.weight"] = tensors["catalogue.weight"][:, : config.model.dim]
    equal = {name: torch.equal(before[name], after[name]) for name in before if "interest" not in name}
    return equal, report, warnings


@pytest.mark.parametrize("name", ["fine_tuning", "imsr", "ader", "sml", "life_long"])
def test_a_span_with_nothing_to_train_on_keeps_the_parameters(tmp_path, name):
    """Its users have 1 or 3 interactions; with 3, one of them is a validation target."""
    short = {
        user: [*spans[:2], spans[2][: 1 if user % 2 else 3], *spans[3:]]
        for user, spans in HISTORY.items()
        if len(spans[2]) != 2 or user % 2
    }
    short = {place: short[user] for place, user in enumerate(short)}
    config = _config(write_dataset(tmp_path / "data", short), tmp_path / "run", strategy=StrategyConfig(name))
    config.run_dir.mkdir()
    equal, report, messages = run_ranks(1, _train_nothing, config)[0]
    assert report["loss"] is None
    assert equal
    assert name == "sml" or all(equal.values())  # SML transfers the parameters of the span before in any case
    assert sum("span 2 has nothing to train on" in message for message in messages) == (name != "life_long")
    assert not any("nan" in message for message in messages)


def _diverge(topology, config):
    config.run_dir.mkdir(exist_ok=True)
    trainer = Trainer(config, Dataset(config.data), topology)

    steps = itertools.count()

    def extra_loss(model, batch, extraction, scores):
        bad = next(steps) == 7 and topology.rank == 1
        return scores.candidates.positive.sum() * (float("nan") if bad else 0.0)

    trainer.strategy.extra_loss = extra_loss
    with pytest.raises(FloatingPointError) as error:
        trainer.run()
    return str(error.value)


def test_a_loss_that_is_not_finite_stops_all_ranks(folder, tmp_path):
    config = _config(folder, tmp_path / "run")
    for message in run_ranks(3, _diverge, config):
        assert "rank(s) [1] is not finite in span 0, epoch 2, step 1 of 3" in message
        assert "the last good state is span 0 after epoch 1" in message


def _ends_no_epoch(topology, config):
    trainer = Trainer(config, Dataset(config.data), topology)

    def train_span(spans, span):
        data = spans.open_span(span)
        for _ in spans.epochs(pretraining=True):
            spans.train_epoch(data, trainer.strategy)

    trainer.strategy.train_span = train_span
    with pytest.raises(RuntimeError, match="did not call end_epoch in epoch 0 of span 0"):
        trainer.run()
    return True


def test_a_strategy_that_ends_no_epoch_does_not_train_for_ever(folder, tmp_path):
    assert run_ranks(1, _ends_no_epoch, _config(folder, tmp_path / "run")) == [True]


def test_every_strategy_builds():
    for name in STRATEGIES:
        assert isinstance(build_strategy(StrategyConfig(name)), Strategy)


@pytest.mark.parametrize(("key", "value"), [("epochs", 0), ("incremental_epochs", 0), ("patience", -1)])
def test_impossible_values_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"training\.{key}"):
        TrainingConfig(**{key: value})


def test_positions_must_cover_the_longest_history(folder, tmp_path):
    with pytest.raises(ValueError, match=r"model\.positions"):
        _config(folder, tmp_path, model=ModelConfig("comirec_sa", positions=9))


def test_a_rank_without_users_in_a_span(tmp_path):
    away = {
        user: spans if user % 8 < 4 else [spans[0] or [0, 1], [], *spans[2:]]  # two ranks own four buckets each
        for user, spans in HISTORY.items()
    }
    config = _config(write_dataset(tmp_path / "data", away), tmp_path / "run", strategy=StrategyConfig("imsr"))
    for _, lines, *_ in run_ranks(2, _run, config):
        assert len(lines) == 2
