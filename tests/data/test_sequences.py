import numpy as np

from dist_imsr.data.dataset import DataConfig, Dataset
from tests.prepared import drawn_history, write_dataset


def test_sequences_of_some_users(tmp_path):
    history = drawn_history()
    sequences = Dataset(DataConfig(write_dataset(tmp_path / "data", history))).sequences(2, 5)
    users = np.array([29, 5, 13, 805, 21])
    owner, places = sequences.of(users)
    found = [(users[one], item) for one, item in zip(owner, sequences.items[places].tolist(), strict=True)]
    assert found == [(user, item) for user in users if user in history for item in history[user][2]]
    assert len({user for user, _ in found}) > 1
