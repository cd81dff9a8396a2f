import numpy as np
import pytest

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.joined import JoinedSpans
from dist_imsr.data.span import SpanData
from tests.data import test_span
from tests.data.test_span import _rows
from tests.prepared import drawn_history, write_dataset

CONFIG = BatchConfig(size=7, max_history=12, max_targets=2, negatives=5, eval_size=6)
HISTORY = drawn_history()
SPAN = 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset(DataConfig(write_dataset(tmp_path_factory.mktemp("data"), HISTORY)))


def _worlds(dataset, edges, read, span=SPAN, kind=JoinedSpans):
    return test_span._worlds(dataset, edges, read, span, CONFIG, kind=kind)


def _before(user, span):
    return [item for items in HISTORY[user][:span] for item in items]


def _trained(user, span):
    items = HISTORY[user][span]
    return items[: -2 if span == SPAN and len(items) >= 3 else None]


def test_an_epoch_cuts_each_sequence_once_and_histories_continue_across_spans(dataset):
    (batches,) = _worlds(dataset, [0, 8], lambda data: data.training(epoch=0))
    found = []
    for batch in batches:
        assert batch.span == SPAN
        assert len(set(batch.users.tolist())) == len(batch.users)  # a user occurs once a step
        found += _rows(batch)
    wanted = [(user, span) for user in HISTORY for span in range(SPAN + 1) if len(_trained(user, span)) >= 2]
    assert sorted(user for user, *_ in found) == sorted(user for user, _ in wanted)
    for user, history, targets in found:
        assert targets
        assert any(
            history == (_before(user, span) + _trained(user, span)[:cut])[-12:]
            and targets == _trained(user, span)[cut : cut + 2]
            for span in range(SPAN + 1)
            for cut in range(1, len(_trained(user, span)))
        )


def test_everything_has_each_user_once_with_the_latest_items(dataset):
    (batches,) = _worlds(dataset, [0, 8], lambda data: data.everything())
    found = {user: history for batch in batches for user, history, _ in _rows(batch)}
    assert sum(len(batch.users) for batch in batches) == len(found)
    assert found == {user: _before(user, SPAN + 1)[-12:] for user in HISTORY if _before(user, SPAN + 1)}


def test_validation_is_that_of_the_last_span(dataset):
    (batches,) = _worlds(dataset, [0, 8], lambda data: data.validation(10**9))
    found = {user: (history, targets) for batch in batches for user, history, targets in _rows(batch)}
    assert found == {
        user: ((_before(user, SPAN) + _trained(user, SPAN))[-12:], items[SPAN][-2:-1])
        for user, items in HISTORY.items()
        if len(items[SPAN]) >= 3
    }


@pytest.mark.parametrize("edges", [[0, 3, 8], [0, 1, 2, 8]])
@pytest.mark.parametrize("read", [lambda data: data.training(1), lambda data: data.everything()])
def test_global_batches_do_not_depend_on_the_number_of_ranks(dataset, edges, read):
    (alone,) = _worlds(dataset, [0, 8], read)
    ranks = _worlds(dataset, edges, read)
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert sorted(row for part in parts for row in _rows(part)) == _rows(whole)
        assert {part.world_targets for part in parts} == {whole.world_targets}
        assert all(np.array_equal(part.negatives.values(), whole.negatives.values()) for part in parts)


def test_the_first_span_equals_pre_training(dataset):
    for read in (lambda data: data.training(2), lambda data: data.everything(), lambda data: data.validation(9)):
        joined, alone = (_worlds(dataset, [0, 8], read, 0, kind)[0] for kind in (JoinedSpans, SpanData))
        for one, other in zip(joined, alone, strict=True):
            assert _rows(one) == _rows(other)
            assert one.negatives.values().equal(other.negatives.values())
