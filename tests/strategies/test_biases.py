"""Where the biases of items start: at the logarithm of their interactions."""

import numpy as np
import pytest
import torch

from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.strategies import StrategyConfig
from dist_imsr.training.trainer import Trainer
from tests.prepared import drawn_history, write_dataset
from tests.ranks import run_ranks
from tests.training.test_checkpoint import _config

SPANS = 3
HISTORY = drawn_history(users=60, items=80, spans=SPANS, longest=9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), HISTORY)


def _biases(topology, config):
    """This rank's biases when each span is opened, with those before; and the untouched columns' largest number."""
    config.run_dir.mkdir(exist_ok=True)
    trainer, found, dim = Trainer(config, Dataset(config.data), topology), [], config.model.dim
    for span in range(SPANS - 1):
        opened = trainer.spans.open_span

        def open_span(*arguments, opened=opened, **options):
            catalogue = trainer.model.catalogue
            known = len(catalogue.own(range(catalogue.items)))
            before = catalogue.flushed_weight()[:known, dim].clone()
            data = opened(*arguments, **options)
            weight = trainer.model.catalogue.flushed_weight()[:known]
            found.append((before, weight[:, dim].clone(), weight[:, dim + 1 :].abs().max()))
            return data

        trainer.spans.open_span = open_span
        trainer.train_span(span)
        trainer.spans.open_span = opened
    rest = trainer.model.catalogue.flushed_weight()[:, dim + 1 :].abs().max()
    return found, rest


@pytest.mark.parametrize("strategy", ["fine_tuning", "full_retraining"])
def test_biases_start_at_the_logarithm_of_interactions(folder, tmp_path, strategy):
    config = _config(folder, tmp_path / "run", strategy=StrategyConfig(strategy))
    ranks = run_ranks(2, _biases, config)
    dataset = Dataset(DataConfig(folder))
    for span in range(SPANS - 1):
        before, after = (torch.cat([found[span][part] for found, _ in ranks]) for part in (0, 1))
        items = dataset.items_by_span[span]
        retrained = span == 0 or strategy == "full_retraining"
        first = 0 if retrained else dataset.items_by_span[span - 1]
        counts = np.zeros(items)
        for spans in HISTORY.values():
            for items_of_span in spans[: span + 1]:
                np.add.at(counts, items_of_span, 1)
        sizes = [sum(len(spans[one]) for spans in HISTORY.values()) for one in range(span + 1)]
        share = 1.0 if retrained else sizes[-1] / sum(sizes)
        torch.testing.assert_close(
            after[first:].double(), torch.from_numpy(np.log1p(counts[first:] / share)).float().double()
        )
        assert torch.equal(before[:first], after[:first])
        if not retrained:
            assert (before[:first] != 0).any()
    assert max(rest for _, rest in ranks) == 0  # columns that only fill up a row are not trained
