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
    found = History(dataset, buckets, span)(torch.from_numpy(users))
    wanted = [sorted({item for items in HISTORY[user][: span + 1] for item in items}) for user in users]
    assert [part.tolist() for part in found.values().split(found.lengths().tolist())] == wanted


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_counts_decay_with_each_later_interaction(dataset, training, decay):
    users = np.random.default_rng(1).permutation([*HISTORY])[:9]
    met = History(dataset, range(8), 2, training=training).met(torch.from_numpy(users))
    counts = met.counts(decay).split(met.items.lengths().tolist())
    for user, items, found in zip(users, met.items.values().split(met.items.lengths().tolist()), counts, strict=True):
        *before, last = HISTORY[user][:3]
        sequence = [item for span in before for item in span] + (last[:-2] if training and len(last) >= 3 else last)
        wanted = dict.fromkeys(sorted(set(sequence)), 0.0)
        for age, item in enumerate(reversed(sequence)):
            wanted[item] += decay**age
        assert items.tolist() == list(wanted)
        np.testing.assert_allclose(found, [*wanted.values()])


def test_no_users(dataset):
    found = History(dataset, range(8), 2)(torch.empty(0, dtype=torch.int64))
    assert len(found.values()) == len(found.lengths()) == 0
