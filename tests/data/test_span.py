import itertools
import threading

import pytest
import torch

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.span import SpanData
from tests.prepared import drawn_history, write_dataset

CONFIG = BatchConfig(size=7, max_history=3, max_targets=2, negatives=5, eval_size=6)
HISTORY = drawn_history()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset(DataConfig(write_dataset(tmp_path_factory.mktemp("data"), HISTORY)))


def _worlds(dataset, edges, read, span=1, config=CONFIG, seed=3, kind=SpanData):
    """Reads a span on several simulated ranks, which are threads."""
    ranks = [range(a, b) for a, b in itertools.pairwise(edges)]
    barrier, shared, results = threading.Barrier(len(ranks)), [None] * len(ranks), [None] * len(ranks)

    def work(rank, buckets):
        def world_sum(values):
            shared[rank] = values
            barrier.wait(10)
            total = sum(shared)
            barrier.wait(10)
            return total

        data = kind(dataset=dataset, span=span, buckets=buckets, config=config, seed=seed, world_sum=world_sum)
        results[rank] = list(read(data))

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def _sequences(jagged):
    return [part.tolist() for part in jagged.values().split(jagged.lengths().tolist())]


def _rows(batch):
    """Each user's history and targets."""
    parts = zip(batch.users.tolist(), _sequences(batch.history), _sequences(batch.targets), strict=True)
    return sorted(parts)


@pytest.mark.parametrize("span", [0, 1, 3])
def test_training_cuts_in_time_order(dataset, span):
    (steps,) = _worlds(dataset, [0, 8], lambda data: data.training(epoch=0), span)
    rows = [row for batch in steps for row in _rows(batch)]
    trained = {user: items[span][: -2 if len(items[span]) >= 3 else None] for user, items in HISTORY.items()}
    assert sorted(user for user, *_ in rows) == sorted(user for user, items in trained.items() if len(items) >= 2)
    for user, history, targets in rows:
        cuts = [
            cut
            for cut in range(1, len(trained[user]))
            if trained[user][max(0, cut - 3) : cut] == history and trained[user][cut : cut + 2] == targets
        ]
        assert cuts, (trained[user], history, targets)
    for batch in steps:
        assert batch.world_targets == len(batch.targets.values())
        assert batch.negatives.lengths().tolist() == [5]
        assert (batch.negatives.values() < dataset.items_by_span[span]).all()


@pytest.mark.parametrize("edges", [[0, 4, 8], [0, 1, 7, 8], [0, 2, 4, 6, 8]])
def test_the_global_batch_is_the_same_for_any_number_of_ranks(dataset, edges):
    (alone,) = _worlds(dataset, [0, 8], lambda data: data.training(epoch=2))
    ranks = _worlds(dataset, edges, lambda data: data.training(epoch=2))
    for step, batch in enumerate(alone):
        parts = [steps[step] for steps in ranks]
        assert sorted(row for part in parts for row in _rows(part)) == _rows(batch)
        assert {part.world_targets for part in parts} == {batch.world_targets}
        assert all(torch.equal(part.negatives.values(), batch.negatives.values()) for part in parts)


def test_epochs_and_seeds_change_the_cuts(dataset):
    def read(epoch, seed):
        (steps,) = _worlds(dataset, [0, 8], lambda data: data.training(epoch), seed=seed)
        return str([_rows(batch) for batch in steps])

    assert read(0, 0) == read(0, 0)
    assert len({read(0, 0), read(1, 0), read(0, 1)}) == 3


def test_users_who_come_later_change_no_batch(dataset, tmp_path):
    more = {user: [*spans[:3], [0, 1, 2]] for user, spans in HISTORY.items()}
    more |= {len(HISTORY) + user: [[], [], [], [1, 2, 3]] for user in range(30)}
    grown = Dataset(DataConfig(write_dataset(tmp_path, more)))
    for read in (lambda data: data.training(epoch=1), lambda data: data.validation(10), lambda data: data.everything()):
        ((few,), (many,)) = (_worlds(one, [0, 8], read) for one in (dataset, grown))
        assert len(few) == len(many) > 1
        for one, other in zip(few, many, strict=True):
            assert torch.equal(one.users, other.users)
            for name in ("history", "targets", "negatives"):
                assert _sequences(getattr(one, name)) == _sequences(getattr(other, name))


def test_validation_and_everything(dataset):
    (steps,) = _worlds(dataset, [0, 8], lambda data: data.validation(10_000))
    rows = [row for batch in steps for row in _rows(batch)]
    assert sorted(rows) == sorted(
        (user, items[1][:-2][-3:], [items[1][-2]]) for user, items in HISTORY.items() if len(items[1]) >= 3
    )
    (steps,) = _worlds(dataset, [0, 8], lambda data: data.everything())
    rows = [row for batch in steps for row in _rows(batch)]
    assert sorted(rows) == sorted((user, items[1][-3:], []) for user, items in HISTORY.items() if items[1])


def test_batches_group_users_by_the_length_of_the_history(dataset):
    (steps,) = _worlds(dataset, [0, 8], lambda data: data.everything())
    seen = {bucket: [] for bucket in range(8)}
    for batch in steps:
        for user, length in zip(batch.users.tolist(), batch.history.lengths().tolist(), strict=True):
            seen[user % 8].append(length)
    assert all(lengths == sorted(lengths) for lengths in seen.values())
    assert len({tuple(lengths) for lengths in seen.values()}) > 1


@pytest.mark.parametrize("edges", [[0, 8], [0, 1, 7, 8]])
def test_pieces_hold_each_interaction_once_and_in_order(dataset, edges):
    longest = max(len(items[1]) for items in HISTORY.values())
    assert longest > 2 * CONFIG.max_history
    ranks = _worlds(dataset, edges, lambda data: data.pieces())
    assert len({len(batches) for batches in ranks}) == 1
    seen = {user: [] for user in HISTORY}
    for step in zip(*ranks, strict=True):
        users = [user for batch in step for user in batch.users.tolist()]
        assert len(users) == len(set(users))
        for user, history, targets in (row for batch in step for row in _rows(batch)):
            assert len(seen[user]) % CONFIG.max_history == 0  # the earlier pieces are full
            assert 0 < len(history) <= CONFIG.max_history
            assert not targets
            seen[user] += history
    assert seen == {user: items[1] for user, items in HISTORY.items()}


def test_testing(dataset):
    def known(users):
        return users % 5 != 0

    (steps,) = _worlds(dataset, [0, 8], lambda data: data.testing(known), span=2)
    seen = set()
    for batch in steps:
        targets, first = _sequences(batch.targets), batch.targets.offsets().tolist()
        rows = zip(batch.users.tolist(), batch.last.tolist(), batch.last_is_new.tolist(), strict=True)
        for place, (user, last, new) in enumerate(rows):
            items = HISTORY[user][2]
            assert targets[place] == sorted(set(items))
            assert batch.targets.values()[last] == items[-1]
            assert first[place] <= last < first[place + 1]
            assert new == (items[-1] not in HISTORY[user][0] + HISTORY[user][1])
            seen.add(user)
    assert seen == {user for user, items in HISTORY.items() if len(items[2]) >= 3 and user % 5}


def test_the_test_sample_does_not_depend_on_seed_or_ranks(dataset):
    def tested_users(edges, seed, most):
        steps = _worlds(dataset, edges, lambda data: data.testing(lambda users: users >= 0, most), span=2, seed=seed)
        return {user for one in steps for batch in one for user in batch.users.tolist()}

    everyone = tested_users([0, 8], 0, None)
    assert tested_users([0, 8], 0, len(everyone)) == everyone
    half = tested_users([0, 8], 0, len(everyone) // 2)
    assert half < everyone
    assert len(half) == pytest.approx(len(everyone) / 2, abs=2 * len(everyone) ** 0.5)
    assert tested_users([0, 3, 8], 1, len(everyone) // 2) == half


def test_interactions_are_memory_mapped(dataset):
    data = SpanData(dataset=dataset, span=1, buckets=range(8), config=CONFIG, seed=0, world_sum=lambda values: values)
    for sequences in data.reader.sequences:
        assert not sequences.items.flags.owndata
        assert not sequences.items.flags.writeable
