"""Small data with repeats, ties, users without history and items that are new in the tested span."""

import pytest

from dist_imsr.data.dataset import DataConfig, Dataset
from tests.prepared import drawn_history, write_dataset


@pytest.fixture(scope="session")
def history():
    return drawn_history(users=50, items=40, spans=4, longest=12)


@pytest.fixture(scope="session")
def folder(history, tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("baselines") / "data", history)


@pytest.fixture
def dataset(folder):
    return Dataset(DataConfig(folder))
