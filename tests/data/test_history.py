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


def test_no_users(dataset):
    found = History(dataset, range(8), 2)(torch.empty(0, dtype=torch.int64))
    assert len(found.values()) == len(found.lengths()) == 0
