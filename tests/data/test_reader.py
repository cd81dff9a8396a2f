import numpy as np
import pytest

from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.reader import SpanReader
from tests.prepared import drawn_history, write_dataset

HISTORY = drawn_history() | {40: [[], [], [], [1]]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset(DataConfig(write_dataset(tmp_path_factory.mktemp("data"), HISTORY)))


@pytest.mark.parametrize("buckets", [range(8), range(3, 6), range(7, 8)])
@pytest.mark.parametrize("span", [0, 3])
def test_users_are_found_whether_they_are_in_the_span_or_not(dataset, span, buckets):
    reader = SpanReader(dataset, span, buckets)
    here = [user for bucket in buckets for user in sorted(HISTORY) if user % 8 == bucket and HISTORY[user][span]]
    assert reader.users.tolist() == here
    users = np.random.default_rng(0).permutation(len(HISTORY) + 20)
    assert reader.find(users).tolist() == [here.index(user) if user in here else -1 for user in users]


def test_nobody_is_found_in_a_span_without_users(tmp_path):
    folder = write_dataset(tmp_path, {0: [[1, 0], []], 1: [[0], []]}, buckets=2)
    reader = SpanReader(Dataset(DataConfig(folder)), 1, range(2))
    assert reader.find(np.arange(3)).tolist() == [-1, -1, -1]
    items, lengths = reader.latest(np.arange(3), np.full(3, 5))
    assert (len(items), lengths.tolist()) == (0, [0, 0, 0])


def test_the_latest_items_of_users(dataset):
    users = np.array([user for bucket in range(8) for user in sorted(HISTORY) if user % 8 == bucket])
    longest = users % 4
    items, lengths = SpanReader(dataset, 2, range(8)).latest(users, longest)
    wanted = [HISTORY[user][2][-most:] if most else [] for user, most in zip(users, longest, strict=True)]
    assert [part.tolist() for part in np.split(items, lengths.cumsum()[:-1])] == wanted
