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
    """This rank's biases before each span and when its epochs start, and the largest number beyond the biases."""
    config.run_dir.mkdir(exist_ok=True)
    trainer, found, dim = Trainer(config, Dataset(config.data), topology), [], config.model.dim
    start = trainer.spans.start_biases

    def biases():
        catalogue = trainer.model.catalogue
        return catalogue.flushed_weight()[: len(catalogue.own_items(range(catalogue.items))), dim].clone()

    def started():
        before = biases()
        start()
        found.append((before, biases()))

    trainer.spans.start_biases = started
    for span in range(SPANS - 1):
        trainer.train_span(span)
    return found, trainer.model.catalogue.flushed_weight()[:, dim + 1 :].abs().max()


@pytest.mark.parametrize("strategy", ["fine_tuning", "full_retraining"])
def test_biases_start_at_the_logarithm_of_recent_interactions(folder, tmp_path, strategy):
    config = _config(folder, tmp_path / "run", strategy=StrategyConfig(strategy))
    ranks = run_ranks(2, _biases, config)
    dataset, decay = Dataset(DataConfig(folder)), config.model.popularity_decay
    for span in range(SPANS - 1):
        before, after = (torch.cat([found[span][part] for found, _ in ranks]) for part in (0, 1))
        counts = np.zeros(dataset.items_by_span[span])
        for spans in HISTORY.values():
            for earlier, items in enumerate(spans[: span + 1]):
                trained = items[:-2] if earlier == span and len(items) >= 3 else items
                np.add.at(counts, trained, decay ** (span - earlier))
        torch.testing.assert_close(after, torch.from_numpy(np.log1p(counts)).float())
        trained_before = before[: dataset.items_by_span[span - 1]] if span else before
        assert (trained_before != 0).any() == (span > 0 and strategy == "fine_tuning")
    assert max(rest for _, rest in ranks) == 0  # columns that only fill up a row are not trained
