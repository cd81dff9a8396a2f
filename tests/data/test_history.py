import numpy as np
import pytest
import torch

from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.history import History
from tests.prepared import drawn_history, write_dataset

HISTORY = drawn_history(users=30, items=40, spans=4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset(DataConfig(write_dataset(tmp_path_factory.mktemp("data"), HISTORY)))


@pytest.mark.parametrize("span", range(4))
@pytest.mark.parametrize("buckets", [range(8), range(3, 6)])
def test_histories_equal_plain_loops(dataset, span, buckets):
    users = np.random.default_rng(0).permutation([user for user in HISTORY if user % 8 in buckets])[:5]
    found = History(dataset, buckets, span)(torch.from_numpy(users)).jagged("cpu")
    wanted = [sorted({item for items in HISTORY[user][: span + 1] for item in items}) for user in users]
    assert [part.tolist() for part in found.values().split(found.lengths().tolist())] == wanted


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_counts_decay_with_each_later_interaction(dataset, training, decay):
    users = np.random.default_rng(1).permutation([*HISTORY])[:9]
    past = History(dataset, range(8), 2, training=training)(torch.from_numpy(users))
    for index, user in enumerate(users):
        own = past.owner == index
        *before, last = HISTORY[user][:3]
        sequence = [item for span in before for item in span] + (last[:-2] if training and len(last) >= 3 else last)
        wanted, latest = dict.fromkeys(sorted(set(sequence)), 0.0), dict[int, float]()
        for age, item in enumerate(reversed(sequence)):
            wanted[item] += decay**age
            latest.setdefault(item, decay**age)
        assert past.item[own].tolist() == list(wanted)
        np.testing.assert_allclose(past.weights(decay)[own], [*wanted.values()])
        np.testing.assert_allclose(past.recency(decay)[own], [latest[item] for item in wanted])


def test_no_users(dataset):
    found = History(dataset, range(8), 2)(torch.empty(0, dtype=torch.int64)).jagged("cpu")
    assert len(found.values()) == len(found.lengths()) == 0
