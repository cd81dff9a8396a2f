import numpy as np
import pytest
import torch

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.jagged import jagged
from dist_imsr.data.negatives import NegativeSampler
from dist_imsr.data.replay import ReplayedSpan
from dist_imsr.data.span import SpanData
from tests.prepared import drawn_history, write_dataset

HISTORY = drawn_history(users=40, items=60, spans=4)
SPAN, ITEMS = 2, 50


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset(DataConfig(write_dataset(tmp_path_factory.mktemp("data"), HISTORY)))


def _q(share):
    """The probability of each item by plain counting."""
    items = [item for user in HISTORY.values() for item in user[SPAN]]
    return (1 - share) / ITEMS + share * np.bincount(items, minlength=ITEMS) / len(items)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_draws_follow_their_probabilities(dataset, share):
    sampler, random = NegativeSampler(dataset, SPAN, ITEMS, 10, share), np.random.default_rng(0)
    drawn = np.bincount(np.concatenate([sampler.draw(random) for _ in range(20_000)]), minlength=ITEMS) / 200_000
    np.testing.assert_allclose(drawn, _q(share), atol=0.002)
    found = sampler.log_q(jagged(np.arange(ITEMS), np.array([20, 30])))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, np.log(_q(share) * ITEMS), atol=1e-5)


def test_uniform_draws_need_no_correction(dataset):
    sampler = NegativeSampler(dataset, SPAN, ITEMS, 10, 0.04)  # rounds to none of them
    wanted = np.random.default_rng(0).integers(ITEMS, size=10)
    assert sampler.draw(np.random.default_rng(0)).tolist() == wanted.tolist()
    assert sampler.log_q(jagged(np.arange(3), np.array([3]))) is None


def test_a_uniform_draw_is_left(dataset):
    sampler = NegativeSampler(dataset, SPAN, ITEMS, 10, 0.99)
    unknown = next(item for item in range(ITEMS) if not _q(1.0)[item])
    assert sampler.log_q(jagged(np.array([unknown]), np.array([1]))).item() == pytest.approx(np.log(0.1))
    assert len(sampler.draw(np.random.default_rng(0))) == 10


def test_earlier_spans_are_drawn_from_themselves_and_all_known_items(dataset):
    config = BatchConfig(size=16, negatives=10)
    part = SpanData(dataset, SPAN, range(8), config, 0, lambda tensor: tensor, until=SPAN + 1)
    known = dataset.items_by_span[SPAN + 1]
    items = [item for user in HISTORY.values() for item in user[SPAN]]
    q = 0.5 / known + 0.5 * np.bincount(items, minlength=known) / len(items)
    batch = next(iter(part.training(0)))
    np.testing.assert_allclose(batch.negative_log_q, np.log(q[batch.negatives.values()] * known), atol=1e-5)
    np.testing.assert_allclose(batch.target_log_q, np.log(q[batch.targets.values()] * known), atol=1e-5)


@pytest.mark.parametrize("kind", [SpanData, ReplayedSpan])
def test_batches_know_how_likely_their_items_are(dataset, kind):
    options = {"pool": 2} if kind is ReplayedSpan else {}
    data = kind(dataset, SPAN, range(8), BatchConfig(size=16, negatives=10), 0, lambda tensor: tensor, **options)
    if options:
        data.choose(np.concatenate([batch.places.numpy() for batch in data.pools()]))
    batches = list(data.training(0))
    assert batches
    for batch in batches:
        for sequences, log_q in ((batch.targets, batch.target_log_q), (batch.negatives, batch.negative_log_q)):
            assert log_q.tolist() == data.negatives.log_q(sequences).tolist()
        replay = batch.replay()
        assert replay.target_log_q.tolist() == data.negatives.log_q(replay.targets).tolist()
        assert bool(options) == bool(batch.replayed)
    assert all(batch.target_log_q is None for batch in data.validation(100))
