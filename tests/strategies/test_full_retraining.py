from dataclasses import replace

import numpy as np
import pytest
import torch

from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.strategies import StrategyConfig
from dist_imsr.strategies.counts import InterestCounts
from dist_imsr.strategies.full_retraining import FullRetrainingConfig
from dist_imsr.training.trainer import Trainer
from tests.prepared import drawn_history, write_dataset
from tests.ranks import run_ranks
from tests.runs import left, run
from tests.training.test_checkpoint import GROWING, _config

HISTORY = drawn_history(users=60, items=80, spans=4, longest=12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), HISTORY)


def _trained(topology, config, spans):
    """The state after each span, without times and lines."""
    config.run_dir.mkdir(exist_ok=True)
    trainer = Trainer(config, Dataset(config.data), topology)
    states = []
    for span in range(spans):
        trainer.train_span(span)
        states.append(left(trainer)[1])
    return states


def test_at_the_first_span_it_is_pre_training(folder, tmp_path):
    names = ("full_retraining", "fine_tuning")
    retrained, tuned = (
        run_ranks(2, _trained, _config(folder, tmp_path / name, strategy=StrategyConfig(name)), 2) for name in names
    )
    for one, other in zip(retrained, tuned, strict=True):
        assert one[0] == other[0]
        assert one[1] != other[1]


def _with_and_without_past(topology, config):
    """The state after the second span, of a trainer with and without the first span."""
    config.run_dir.mkdir(exist_ok=True)
    states = []
    for spans in ([0, 1], [1]):
        trainer = Trainer(config, Dataset(config.data), topology)
        for span in spans:
            trainer.spans.progress = trainer.progress.at(span)
            trainer.train_span(span)
        states.append(left(trainer)[1])
    return states


@pytest.mark.parametrize("base", ["comirec_dr", "comirec_sa"])
def test_nothing_is_inherited(folder, tmp_path, base):
    model = replace(_config(folder, tmp_path).model, base=base)
    config = _config(folder, tmp_path / "run", strategy=StrategyConfig("full_retraining"), model=model)
    for one, other in run_ranks(2, _with_and_without_past, config):
        assert one == other


def test_users_get_the_numbers_of_interests_of_another_run(folder, tmp_path):
    grown = _config(folder, tmp_path / "imsr", strategy=GROWING)
    run_ranks(2, run, grown)
    strategy = StrategyConfig("full_retraining", full_retraining=FullRetrainingConfig(grown.run_dir))
    counts, dataset = InterestCounts(grown.run_dir), Dataset(DataConfig(folder))
    users = np.arange(60)
    wanted = counts.after(dataset, 2, users)
    assert len(set(wanted.tolist())) > 2
    assert wanted.sum() > counts.after(dataset, 0, users).sum()
    assert (counts.after(dataset, 2, users[5:9]) == wanted[5:9]).all()
    found = {}
    for counts in run_ranks(3, _counts, _config(folder, tmp_path / "retrained", strategy=strategy)):
        found |= counts
    assert [found[user] for user in users] == wanted.tolist()


def _counts(topology, config):
    """The number of interests of each of this rank's users."""
    config.run_dir.mkdir(exist_ok=True)
    trainer = Trainer(config, Dataset(config.data), topology)
    trainer.spans.progress = trainer.progress.at(2)
    trainer.train_span(2)
    store = trainer.model.store
    return dict(zip(store.owned.users(torch.arange(len(store.counts))).tolist(), store.counts.tolist(), strict=True))


def test_a_run_without_exported_spans_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"interests_from: .*span=0.*--training.export every"):
        InterestCounts(tmp_path).check(Dataset(DataConfig(folder)), range(3))
