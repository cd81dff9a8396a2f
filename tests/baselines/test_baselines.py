"""Every baseline against its slow loop: ranks of all targets, on one rank and on several."""

import importlib.util

import numpy as np
import pytest

from dist_imsr.baselines.dense import user_items
from dist_imsr.baselines.ials import IALS, IALSConfig
from dist_imsr.baselines.item_knn import ItemKNN, ItemKNNConfig
from dist_imsr.baselines.known import Known, TargetItems, target_items
from dist_imsr.baselines.own_history import OwnHistory, OwnHistoryConfig
from dist_imsr.baselines.popular import Popular, PopularConfig, Popularity
from dist_imsr.data.history import PastItems
from dist_imsr.data.jagged import jagged
from tests.baselines import slow
from tests.ranks import run_ranks

TOP = 5


def _ranks(topology, dataset, span, build, config):
    """The facts of a baseline, and ranks by user and target."""
    known = Known(dataset, span, topology, TOP)
    baseline, found = build(known, config), {}
    for batch in known.open(span + 1).testing(lambda users: dataset.known(users, span)):
        ranks = baseline.ranks(batch.users, batch.targets)
        targets = target_items(batch.targets)
        users = batch.users.numpy()[targets.owner].tolist()
        both = zip(ranks.all_items.tolist(), ranks.unseen.tolist(), strict=True)
        found |= dict(zip(zip(users, targets.item.tolist(), strict=True), both, strict=True))
    return baseline.facts, found


def _expected(history, dataset, span, scores_of):
    items, expected = dataset.items_by_span[span + 1], {}
    for user, targets in slow.tested_users(history, span + 1).items():
        past, scores = slow.past_of(history, user, span), scores_of(user, items)
        expected |= {(user, target): slow.both_ranks(scores, target, past, items) for target in set(targets)}
    return expected


def _joined(results):
    return {key: ranks for _, found in results for key, ranks in found.items()}


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("spans", ["last", "all"])
def test_popular(dataset, history, world_size, spans):
    found = _joined(run_ranks(world_size, _ranks, dataset, 2, Popular, PopularConfig(spans)))
    counts = slow.popular(history, [2] if spans == "last" else [0, 1, 2])
    expected = _expected(history, dataset, 2, lambda user, items: [counts[item] for item in range(items)])
    assert found == expected
    assert len({rank for rank, _ in expected.values() if rank % 1}) > 1  # ties
    assert any(counts[item] == 0 for _, item in expected)


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("span", [1, 2])
def test_own_history(dataset, history, world_size, span):
    results = run_ranks(world_size, _ranks, dataset, span, OwnHistory, OwnHistoryConfig())
    decay = slow.best_decay(history, span, dataset.items_by_span[span], TOP)
    assert all(facts == {"decay": decay} for facts, _ in results)
    counts = slow.popular(history, [span])
    expected = _expected(
        history,
        dataset,
        span,
        lambda user, items: slow.own_first(slow.past_of(history, user, span), decay, counts, items),
    )
    assert _joined(results) == expected
    assert {np.isinf(unseen) for _, unseen in expected.values()} == {True, False}


def test_a_count_without_decay_has_ties(dataset, history):
    found = _joined(run_ranks(1, _ranks, dataset, 2, OwnHistory, OwnHistoryConfig([1.0])))
    counts = slow.popular(history, [2])
    assert found == _expected(
        history,
        dataset,
        2,
        lambda user, items: slow.own_first(slow.past_of(history, user, 2), 1.0, counts, items),
    )
    assert any(rank % 1 and np.isinf(unseen) for rank, unseen in found.values())


def test_item_knn(dataset, history):
    [(facts, found)] = run_ranks(1, _ranks, dataset, 2, ItemKNN, ItemKNNConfig(decay=0.9))
    expected = _expected(history, dataset, 2, lambda user, items: slow.item_knn(history, user, 2, 0.9, items))
    assert facts == {"decay": 0.9}
    assert found == expected


def _factors(topology, dataset, span):
    baseline = IALS(Known(dataset, span, topology, TOP), IALSConfig(factors=4, iterations=3, alphas=[10.0]))
    return baseline._users, baseline._items


@pytest.mark.skipif(importlib.util.find_spec("implicit") is None, reason="implicit is not installed")
def test_ials(dataset, history):
    config = IALSConfig(factors=4, iterations=3, alphas=[10.0])
    [(_, found)] = run_ranks(1, _ranks, dataset, 2, IALS, config)
    [(users, factors)] = run_ranks(1, _factors, dataset, 2)  # the same seed, the same factors
    met = slow.popular(history, [0, 1, 2])

    def scores(user, items):
        products = [float(users[user] @ factors[item]) for item in range(items)]
        return [product if met[item] else -np.inf for item, product in enumerate(products)]

    expected = _expected(history, dataset, 2, scores)
    infinite = {key for key in found if not met[key[1]]}
    assert infinite
    assert {key: found[key] for key in found.keys() - infinite} == {
        key: expected[key] for key in expected.keys() - infinite
    }
    items = dataset.items_by_span[3]
    last = (len([item for item in range(items) if met[item]]) + 1 + items) / 2
    assert {found[key][0] for key in infinite} == {last}


def _gains(topology, dataset, span, alphas):
    """What is chosen of some alphas, and factors of each without what is held out of training."""
    known, fitted = Known(dataset, span, topology, TOP), []
    for alpha in alphas:
        one = IALS(known, IALSConfig(factors=4, iterations=3, alphas=[alpha]))
        one._fit(user_items(known, training=True), alpha)
        fitted.append((one._users, one._items))
    return IALS(known, IALSConfig(factors=4, iterations=3, alphas=alphas)).facts["alpha"], fitted


@pytest.mark.skipif(importlib.util.find_spec("implicit") is None, reason="implicit is not installed")
def test_validation_chooses_the_confidence(dataset, history):
    alphas, span, gains = [0.001, 5.0, 100.0], 2, []
    [(chosen, fitted)] = run_ranks(1, _gains, dataset, span, alphas)
    trained = {user: slow.trained_until(history, user, span) for user in history}
    met = {item for items in trained.values() for item in items}
    for users, factors in fitted:
        total = 0.0
        for user, target in slow.validation_targets(history, span).items():
            scores = [
                float(users[user] @ row) if item in met else -np.inf
                for item, row in enumerate(factors[: dataset.items_by_span[span + 1]])
            ]
            if target in met:
                rank = slow.rank(scores, target, range(len(scores)))
                total += 1 / np.log2(rank + 1) if rank <= TOP else 0.0
        gains.append(total)
    assert len({round(gain, 6) for gain in gains}) == len(gains)
    assert chosen == alphas[int(np.argmax(gains))]


@pytest.mark.parametrize("training", [False, True])
def test_numbers_of_interactions_equal_plain_loops(dataset, history, training):
    [counts] = run_ranks(1, _user_items, dataset, 2, training)
    for user in history:
        sequence = slow.trained_until(history, user, 2) if training else slow.past_of(history, user, 2)
        assert counts[user].tolist() == np.bincount(sequence, minlength=counts.shape[1]).tolist()


def _user_items(topology, dataset, span, training):
    return user_items(Known(dataset, span, topology, TOP), training).toarray()


def test_one_item_of_a_user_by_hand():
    past = PastItems(
        2,
        owner=np.array([0, 0, 1]),
        item=np.array([3, 7, 3]),
        place=np.array([1, 0, 1, 2, 2]),
        age=np.array([2, 1, 0, 1, 0]),
    )
    np.testing.assert_allclose(past.weights(0.5), [0.5, 1.25, 1.5])
    np.testing.assert_allclose(past.recency(0.5), [0.5, 1, 1])
    targets = target_items(jagged([7, 8, 3], [2, 1]))
    assert targets.places(past).tolist() == [1, -1, 2]


def test_users_without_history_get_what_is_popular(dataset, history):
    none = np.empty(0, np.int64)
    past, targets = PastItems(2, none, none, none, none), TargetItems(np.array([0, 1]), np.array([0, 5]))
    ranks = Popularity(dataset, range(2, 3), 40).ranks(past, targets, targets.places(past) >= 0)
    counts = slow.popular(history, [2])
    scores = [counts[item] for item in range(40)]
    assert ranks.unseen.tolist() == ranks.all_items.tolist() == [slow.rank(scores, item, range(40)) for item in (0, 5)]
