import gc
import itertools
from dataclasses import replace

import pytest
import torch

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.objective import NextItem
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.mimn import MIMNConfig
from dist_imsr.strategies import STRATEGIES, StrategyConfig
from dist_imsr.strategies.progress import Progress
from dist_imsr.training.config import TrainConfig, TrainingConfig
from dist_imsr.training.trainer import Trainer
from tests.prepared import drawn_history, write_dataset
from tests.ranks import ranks_on, run_ranks
from tests.runs import timeless

HISTORY = drawn_history(users=40, items=60, spans=4, longest=12)
# All channels move with every interaction: rounding must not choose between them.
BASES, MIMN = ("limarec", "mimn"), MIMNConfig(memory=12, controller=9, induction=8, channels=3)


def _config(folder, run_dir, base, strategy="life_long", max_history=3):
    return TrainConfig(
        data=DataConfig(folder),
        run_dir=run_dir,
        model=ModelConfig(base, dim=8, interests=3, mimn=MIMN),
        strategy=StrategyConfig(strategy),
        batch=BatchConfig(size=16, max_history=max_history, max_targets=3, negatives=20, eval_size=16),
        catalogue=CatalogueConfig(headroom=4.0),
        training=TrainingConfig(epochs=2, export="none"),
        eval=EvalConfig([5]),
    )


def _free(trainer):
    """Frees a model, whose parts refer to each other."""
    trainer.model.engine.close()
    del trainer.spans.model, trainer.spans.ranker
    gc.collect()


def _written(store):
    """Copies of the users of the interests, their vectors and their states."""
    return store.owned.users(store.owners), store.values.clone(), store.slots.states.clone()


def _written_spans(topology, configs):
    """For each configuration, `_written` after each span, and the parameters before and after the later spans."""
    results = []
    for config in configs:
        trainer = Trainer(config, Dataset(config.data), topology)
        trainer.model.engine.log = lambda values, step: None
        data, store = trainer.spans.open_span(0), trainer.model.store
        trainer.spans.admit_users(data)
        trainer.spans.write_back(data, NextItem())  # without training, which would see histories of other lengths
        parameters = {name: rows.values.clone() for name, rows in trainer.model.tensors().items()}
        trainer.spans.progress, spans = Progress(span=1), [_written(store)]
        for span in (1, 2):
            trainer.train_span(span)
            spans.append(_written(store))
        later = {name: rows.values[: len(parameters[name])] for name, rows in trainer.model.tensors().items()}
        results.append((spans, parameters, later))
        _free(trainer)
    return results


def _trained(topology, configs):
    """The losses and lines of whole runs, and `_written` at their ends."""
    results = []
    for config in configs:
        config = replace(config, run_dir=config.run_dir / str(topology.world_size))
        config.run_dir.mkdir(exist_ok=True, parents=True)
        trainer, losses = Trainer(config, Dataset(config.data), topology), []
        trainer.model.engine.log = lambda values, step, losses=losses: losses.extend(values.values())
        lines = timeless(trainer.run())
        for line in lines:
            line.pop("store_bytes")  # counts one more offset a rank
        results.append((losses, lines, *_written(trainer.model.store)))
        _free(trainer)
    return results


def _updated(topology, config, weight):
    """The reported losses of a step whose regularisation has this weight, and the gradient of W_g."""
    mimn = replace(config.model.mimn, regularisation=weight)
    trainer = Trainer(replace(config, model=replace(config.model, mimn=mimn)), Dataset(config.data), topology)
    data, gradients = trainer.spans.open_span(0), []
    trainer.spans.admit_users(data)
    trainer.model.extractor.balance.register_hook(gradients.append)
    reported = trainer.model.train_step(data.training(0).read(0))
    _free(trainer)
    return reported, gradients[0]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """By base: `_written_spans` with histories of at most 3 and of at most 50, and `_trained` on one rank and on two.

    Under ``updates``: `_updated` with the weights 0, 1 and 2.
    """
    folder, runs = write_dataset(tmp_path_factory.mktemp("data"), HISTORY), tmp_path_factory.mktemp("runs")
    short, long = ([_config(folder, runs / base, base, max_history=most) for base in BASES] for most in (3, 50))
    with ranks_on(1) as ranks:
        ((*pieces,),) = ranks.call(_written_spans, short)
        ((*whole,),) = ranks.call(_written_spans, long)
        (alone,) = ranks.call(_trained, short)
        updates = [ranks.call(_updated, short[BASES.index("mimn")], weight)[0] for weight in (0.0, 1.0, 2.0)]
    two = run_ranks(2, _trained, short)
    return {"updates": updates} | {
        base: (pieces[place], whole[place], alone[place], [rank[place] for rank in two])
        for place, base in enumerate(BASES)
    }


@pytest.mark.parametrize("base", BASES)
def test_a_span_written_in_pieces_equals_the_whole_span(worlds, base):
    assert max(len(items) for spans in HISTORY.values() for items in spans) > 9
    pieces, whole, *_ = worlds[base]
    for (owners, *found), (wanted_owners, *wanted) in zip(pieces[0], whole[0], strict=True):
        assert torch.equal(owners, wanted_owners)
        for one, other in zip(found, wanted, strict=True):
            assert one.any()
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", BASES)
def test_only_states_of_active_users_move_after_span_0(worlds, base):
    for spans, parameters, later in worlds[base][:2]:
        for name, value in parameters.items():
            assert torch.equal(value, later[name]), name
        for span, (before, after) in enumerate(itertools.pairwise(spans), 1):
            for user, spans_of_user in HISTORY.items():
                old, new = (
                    torch.cat([column[owners == user] for column in columns], 1) for owners, *columns in (before, after)
                )
                assert torch.equal(old, new) == (not spans_of_user[span])


@pytest.mark.parametrize("base", BASES)
def test_world_size_changes_nothing(worlds, base):
    losses, lines, *wanted = worlds[base][2]
    assert [line["span"] for line in lines] == [1, 2]
    ranks = worlds[base][3]
    owners, *columns = (torch.cat(column) for column in list(zip(*ranks, strict=True))[2:])
    order = owners.argsort(stable=True)
    for found, whole in zip((owners, *columns), wanted, strict=True):
        torch.testing.assert_close(found[order], whole, rtol=1e-3, atol=1e-4)
    for losses_there, lines_there, *_ in ranks:
        assert losses_there == pytest.approx(losses, rel=1e-4)
        for found, line in zip(lines_there, lines, strict=True):
            assert found == {
                key: pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value
                for key, value in line.items()
            }


def test_the_regularisation_is_trained_but_not_reported(worlds):
    (losses, without), (same, once), (_, twice) = worlds["updates"]
    assert torch.equal(losses, same)
    assert (once - without).norm() > 1e-3 * without.norm()
    torch.testing.assert_close(twice - without, 2 * (once - without), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in ("life_long", "frozen")])
def test_base_models_with_states_require_fixed_parameters(tmp_path, base, strategy):
    with pytest.raises(ValueError, match=rf"strategy\.name: '{strategy}'.*model\.base {base}"):
        _config(tmp_path, tmp_path, base, strategy)


def test_fixed_parameters_fit_every_base_model(tmp_path):
    for base in ("comirec_dr", "comirec_sa", "mind", "limarec", "mimn"):
        for strategy in ("life_long", "frozen"):
            config = _config(tmp_path, tmp_path, base, strategy)
            assert replace(config).model.base == base
