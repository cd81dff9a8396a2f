from functools import partial

import numpy as np
import pytest

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.replay import ReplayedSpan
from tests.data import test_span
from tests.data.test_span import _rows, _sequences
from tests.prepared import drawn_history, write_dataset

CONFIG = BatchConfig(size=7, max_history=4, max_targets=2, negatives=5, eval_size=12)
HISTORY = drawn_history()
SPAN, POOL = 2, 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset(DataConfig(write_dataset(tmp_path_factory.mktemp("data"), HISTORY)))


def _worlds(dataset, edges, read, span=SPAN, pool=POOL):
    return test_span._worlds(dataset, edges, read, span, CONFIG, kind=partial(ReplayedSpan, pool=pool))


def _trained(user):
    items = HISTORY[user][SPAN]
    return items[: -2 if len(items) >= 3 else None]


def _in_pool(user):
    """The earlier spans of which a user has sequences in the pool."""
    return [span for span in range(SPAN) if len(HISTORY[user][span]) >= 2 and len(_trained(user)) >= 2]


def _chosen(data, which=slice(None)):
    """Chooses sequences of the pool, all by default."""
    for pool in data.pools():
        data.choose(pool.places.numpy()[which])
    return data.training(epoch=0)


def test_the_pool_holds_truncated_sequences_of_each_earlier_span(dataset):
    (blocks,) = _worlds(dataset, [0, 8], lambda data: data.pools())
    found = {}
    for block in blocks:
        olds = _sequences(block.history)
        for place, new in enumerate(_sequences(block.new)):
            of_user = [old for old, owner in zip(olds, block.owners.tolist(), strict=True) if owner == place]
            found[tuple(new)] = found.get(tuple(new), []) + of_user
    users = [user for user in HISTORY if _in_pool(user)]
    assert sum(map(len, found.values())) == POOL * sum(len(_in_pool(user)) for user in users) > 0
    for user in users:
        for old in found[tuple(_trained(user)[-4:])]:
            assert any(
                old == HISTORY[one][span][:cut][-4:]
                for one in HISTORY
                for span in _in_pool(one)
                for cut in range(1, len(HISTORY[one][span]))
            )


def test_chosen_sequences_are_in_the_batches_of_their_users(dataset):
    (batches,) = _worlds(dataset, [0, 8], _chosen)
    replayed = 0
    for batch in batches:
        new = len(batch.users) - batch.replayed
        users, rows = batch.users.tolist(), list(zip(*map(_sequences, (batch.history, batch.targets)), strict=True))
        assert len(set(users[:new])) == new
        assert set(users[new:]) <= set(users[:new])
        for user in users[:new]:
            assert users[new:].count(user) == POOL * len(_in_pool(user))
        for user, (history, targets) in zip(users[new:], rows[new:], strict=True):
            assert any(
                history == HISTORY[user][span][:cut][-4:] and targets == HISTORY[user][span][cut : cut + 2]
                for span in _in_pool(user)
                for cut in range(1, len(HISTORY[user][span]))
            )
        assert batch.world_targets == sum(len(targets) for _, targets in rows)
        part = batch.replay()
        assert list(zip(*map(_sequences, (part.history, part.targets)), strict=True)) == rows[new:]
        replayed += batch.replayed
    assert replayed > 0


def test_new_sequences_equal_those_of_fine_tuning(dataset):
    (plain,) = test_span._worlds(dataset, [0, 8], lambda data: data.training(epoch=0), SPAN, CONFIG)
    (replayed,) = _worlds(dataset, [0, 8], _chosen)
    for one, other in zip(plain, replayed, strict=True):
        new = len(other.users) - other.replayed
        assert np.array_equal(one.users, other.users[:new])
        assert _rows(one) == sorted(
            zip(
                other.users[:new].tolist(),
                *(_sequences(part)[:new] for part in (other.history, other.targets)),
                strict=True,
            )
        )
        assert np.array_equal(one.negatives.values(), other.negatives.values())


@pytest.mark.parametrize("pool", [0, POOL])
def test_without_chosen_sequences_it_equals_fine_tuning(dataset, pool):
    (plain,) = test_span._worlds(dataset, [0, 8], lambda data: data.training(epoch=1), SPAN, CONFIG)
    (replayed,) = _worlds(dataset, [0, 8], lambda data: data.training(epoch=1), pool=pool)
    assert [_rows(one) for one in plain] == [_rows(one) for one in replayed]
    assert [one.world_targets for one in plain] == [one.world_targets for one in replayed]
    assert all(not one.replayed for one in replayed)


@pytest.mark.parametrize("edges", [[0, 3, 8], [0, 1, 2, 8]])
def test_ranks_replay_the_same(dataset, edges):
    (whole,) = _worlds(dataset, [0, 8], _chosen)
    parts = _worlds(dataset, edges, _chosen)
    for step, batch in enumerate(whole):
        found = sorted(row for part in parts for row in _rows(part[step]))
        assert found == _rows(batch)
        assert {part[step].world_targets for part in parts} == {batch.world_targets}


def test_sequences_are_counted_over_ranks(dataset):
    def count(data):
        _chosen(data)
        return [data.sequences()]

    counts = _worlds(dataset, [0, 3, 8], count)
    wanted = POOL * sum(len(_in_pool(user)) for user in HISTORY), sum(len(_trained(user)) >= 2 for user in HISTORY)
    assert counts == [[wanted]] * 2


def test_the_first_span_has_no_pool(dataset):
    (blocks,) = _worlds(dataset, [0, 8], lambda data: data.pools(), span=0)
    assert blocks == []
