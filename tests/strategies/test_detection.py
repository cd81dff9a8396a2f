import pytest

from dist_imsr.model.detector import DetectorConfig
from dist_imsr.strategies.detection import detect
from tests.distributed.test_recommender import _batch, _recommender
from tests.ranks import run_ranks


def _judged(topology, detector, trained):
    """How many interests each of three users gets, and how many users' fit was measured."""
    model, batch = _recommender(topology, 50, 20), _batch(20, 50)
    _, growth = detect([batch], 1, trained, model.catalogue, model.store, detector)
    return (model.store.counts[batch.users] - 4).tolist(), growth.detected


@pytest.mark.parametrize(
    ("untrained", "trained", "granted", "detected"),
    [
        (False, 50, [2, 2, 2], 3),
        (False, 6, [2, 2, 0], 2),  # the third user met item 7 alone
        (False, 0, [0, 0, 0], 0),
        (True, 0, [2, 2, 2], 3),
    ],
)
def test_items_that_were_never_trained_puzzle_nobody(untrained, trained, granted, detected):
    everybody = DetectorConfig(c1=2.0, share=0.0, delta_k=2, untrained=untrained)
    assert run_ranks(1, _judged, everybody, trained) == [(granted, detected)]
