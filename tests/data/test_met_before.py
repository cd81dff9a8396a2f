"""Whether users met items before, against slow loops."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_imsr.data import met_before as module
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.met_before import met_before, met_in
from tests.prepared import drawn_history, retire_before, write_dataset

BUCKETS = 4
HISTORY = drawn_history(users=60, items=40, spans=4)

rows = st.lists(st.tuples(st.integers(3, 9), st.integers(0, 4), st.integers(0, 3)), max_size=60)


@pytest.mark.parametrize("block", [1 << 16, 1, 7])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows)
def test_in_the_same_log(monkeypatch: pytest.MonkeyPatch, block: int, rows: list[tuple[int, int, int]]) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    rows = sorted(rows, key=lambda row: row[0])
    expected = [any((user, item) == other[:2] and other[2] < span for other in rows) for user, item, span in rows]
    users, items, spans = (np.array([row[column] for row in rows], np.int32) for column in range(3))
    assert met_before(users, items, spans.astype(np.uint16), 5).tolist() == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("history") / "data", HISTORY, BUCKETS)


def of_bucket(bucket: int, chosen: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Interactions of some users of a bucket, new ones among them, with items, new ones among them."""
    draw = np.random.default_rng(seed)
    users = draw.permutation(np.arange(bucket, 80, BUCKETS))[:chosen]
    users = np.sort(draw.choice(users, 20 * chosen))
    return users, draw.integers(0, 50, len(users))


def slowly(users: np.ndarray, items: np.ndarray, spans: range) -> list[bool]:
    met = {(user, item) for user, own in HISTORY.items() for span in spans for item in own[span]}
    return [pair in met for pair in zip(users.tolist(), items.tolist(), strict=True)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chosen", [1, 3, 20])  # few users are looked up, many are read in order
def test_in_a_data_set(folder: Path, chosen: int, seed: int) -> None:
    for bucket in range(BUCKETS):
        users, items = of_bucket(bucket, chosen, seed)
        expected = slowly(users, items, range(4))
        assert met_in(Dataset(DataConfig(folder)), bucket, users, items).tolist() == expected
        assert chosen < 20 or len({*expected}) == 2


def test_strangers_of_the_same_hash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_hashed", lambda rows, items, bits: np.zeros(len(rows), np.uint32))
    users, items = of_bucket(1, 9, 0)
    assert met_in(Dataset(DataConfig(folder)), 1, users, items).tolist() == slowly(users, items, range(4))


def test_nobody(folder: Path) -> None:
    assert met_in(Dataset(DataConfig(folder)), 0, np.empty(0, np.int64), np.empty(0, np.int64)).tolist() == []


def test_retired_spans_do_not_count(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "data", HISTORY, BUCKETS)
    retire_before(folder, 2)
    users, items = of_bucket(2, 20, 0)
    found = met_in(Dataset(DataConfig(folder)), 2, users, items).tolist()
    assert found == slowly(users, items, range(2, 4)) != slowly(users, items, range(4))
