import numpy as np
import pytest
import torch

from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.jagged import one_sequence
from dist_imsr.model.detector import DetectorConfig
from dist_imsr.strategies.detection import detect, draw_null_items
from tests.distributed.test_recommender import _batch, _recommender
from tests.prepared import drawn_history, write_dataset
from tests.ranks import run_ranks


def _detected(topology, detector, trained):
    """The numbers of new interests of three users, and the number of users with a measured fit."""
    model, batch = _recommender(topology, 50, 20), _batch(20, 50)
    null = one_sequence(torch.arange(50))
    _, growth = detect([batch], 1, trained, model.catalogue, model.store, detector, null)
    return (model.store.counts[batch.users] - 4).tolist(), growth.detected


@pytest.mark.parametrize(
    ("untrained", "trained", "created", "detected"),
    [
        (False, 50, [2, 2, 2], 3),
        (False, 6, [2, 2, 0], 2),  # the third user met item 7 alone
        (False, 0, [0, 0, 0], 0),
        (True, 0, [2, 2, 2], 3),
    ],
)
def test_untrained_items_puzzle_no_user(untrained, trained, created, detected):
    all_puzzled = DetectorConfig(c1=2.0, share=0.0, delta_k=2, untrained=untrained)
    assert run_ranks(1, _detected, all_puzzled, trained) == [(created, detected)]


def _started(topology, start):
    """The vectors of three users' new interests, and their items' directions."""
    model, batch = _recommender(topology, 50, 20), _batch(20, 50)
    detector = DetectorConfig(c1=2.0, share=0.0, delta_k=1, start=start)
    detect([batch], 1, 50, model.catalogue, model.store, detector, one_sequence(torch.arange(50)))
    rows = model.catalogue.flushed_weight()[:, : model.config.dim]
    items = rows[batch.history.values()].split(batch.history.lengths().tolist())
    vectors = model.store.gather(batch.users).vectors[:, 4:]
    return vectors, [torch.nn.functional.normalize(own, dim=-1) for own in items]


def test_new_interests_start_at_items_or_at_noise():
    ((vectors, items),) = run_ranks(1, _started, "items")
    for new, own in zip(vectors, items, strict=True):
        near = (own.unsqueeze(0) - new.unsqueeze(1)).norm(dim=-1).amin(1)
        assert near.max() < 1e-5
    ((noise, _),) = run_ranks(1, _started, "noise")
    assert not torch.equal(vectors, noise)


def test_null_items_are_drawn_like_the_interactions_of_the_span(tmp_path):
    history = drawn_history(users=40, items=30, spans=2, longest=9)
    dataset = Dataset(DataConfig(write_dataset(tmp_path, history)))
    items, interactions = dataset.item_counts(1)
    trained = int(np.median(items))
    drawn = draw_null_items(dataset, 1, trained, 20_000, seed=3).values().numpy()
    assert drawn.max() < trained
    known = items < trained
    shares = np.bincount(drawn, minlength=trained)[items[known]] / len(drawn)
    np.testing.assert_allclose(shares, interactions[known] / interactions[known].sum(), atol=0.02)
    assert np.array_equal(drawn, draw_null_items(dataset, 1, trained, 20_000, seed=3).values().numpy())
    assert not np.array_equal(drawn, draw_null_items(dataset, 1, trained, 20_000, seed=4).values().numpy())
    assert len(draw_null_items(dataset, 1, 0, 100, seed=3).values()) == 0
