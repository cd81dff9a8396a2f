import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_imsr.model.detector import (
    DetectorConfig,
    densest_items,
    divergence,
    item_fit,
    largest_cosine,
    percentile,
    user_fit,
)
from dist_imsr.model.interests import Interests
from tests import reference
from tests.devices import call_on


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    items=st.integers(1, 6),
    scale=st.sampled_from([0.0, 0.1, 3.0]),
    seed=st.integers(0, 1000),
)
def test_divergence_equals_the_definition(device, counts, items, scale, seed):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
    vectors = torch.randn(*mask.shape, 4, generator=draw, dtype=torch.float64)
    embeddings = scale * torch.randn(len(counts), items, 4, generator=draw, dtype=torch.float64)
    found = call_on(device, divergence, Interests(vectors, mask), embeddings)
    single = call_on(device, divergence, Interests(vectors.float(), mask), embeddings.float())
    for user, count in enumerate(counts):
        for item in range(items):
            wanted = reference.divergence(vectors[user, :count].numpy(), embeddings[user, item].numpy())
            np.testing.assert_allclose(found[user, item], wanted, atol=1e-12)
            np.testing.assert_allclose(single[user, item], wanted, atol=1e-5)


def test_divergence_gradients():
    vectors, items = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert torch.autograd.gradcheck(lambda v, i: divergence(Interests(v, mask), i), (vectors, items))


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=4), items=st.integers(1, 6), seed=st.integers(0, 1000))
def test_largest_cosine_equals_the_definition(device, counts, items, seed):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
    vectors = torch.randn(*mask.shape, 4, generator=draw) * mask.unsqueeze(-1)
    embeddings = torch.randn(len(counts), items, 4, generator=draw)
    found = call_on(device, largest_cosine, Interests(vectors, mask), embeddings)
    for user, count in enumerate(counts):
        for item in range(items):
            one = embeddings[user, item].double().numpy()
            each = [h @ one / np.linalg.norm(h) / np.linalg.norm(one) for h in vectors[user, :count].double().numpy()]
            np.testing.assert_allclose(found[user, item], max(each), atol=1e-5)


def test_item_fit_uses_the_configured_measure():
    interests = Interests(torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    items, null = torch.randn(2, 5, 4), torch.randn(9, 4)
    for name, wanted in {
        "cosine": largest_cosine(interests, items),
        "divergence": divergence(interests, items),
        "percentile": percentile(interests, items, null),
    }.items():
        assert torch.equal(item_fit(interests, items, DetectorConfig(measure=name), null), wanted)
    assert torch.isfinite(largest_cosine(interests.replace(torch.zeros(2, 3, 4)), torch.zeros(2, 5, 4))).all()


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    items=st.integers(1, 6),
    others=st.integers(1, 9),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 1000),
)
def test_percentile_counts_the_items_that_fit_less(device, counts, items, others, scale, seed):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
    vectors = torch.randn(*mask.shape, 4, generator=draw) * mask.unsqueeze(-1)
    embeddings, null = (torch.randn(*shape, 4, generator=draw) for shape in [(len(counts), items), (others,)])
    found = call_on(device, percentile, Interests(scale * vectors, mask), scale * embeddings, null)
    for user, count in enumerate(counts):
        directions = torch.nn.functional.normalize(vectors[user, :count].double(), dim=-1)
        best = [
            [float((directions @ (one / one.norm())).max()) for one in each.double()]
            for each in (embeddings[user], null)
        ]
        for item, own in enumerate(best[0]):
            assert found[user, item] == pytest.approx(sum(other < own for other in best[1]) / others)


def test_new_interests_start_where_most_puzzling_items_are():
    directions = torch.eye(4)
    near = [directions[0], directions[0] + 0.1 * directions[3], directions[0] - 0.1 * directions[3]]
    items = torch.stack([5 * directions[2], *near, directions[1], 2 * directions[1]]).unsqueeze(0).repeat(3, 1, 1)
    puzzling = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]]).bool()
    found = densest_items(items, puzzling, 2)
    torch.testing.assert_close(found[0], directions[:2])
    torch.testing.assert_close(found[1, 0], directions[1])
    assert not found[2].any()
    assert densest_items(torch.empty(0, 0, 4), torch.empty(0, 0, dtype=torch.bool), 2).shape == (0, 2, 4)


@pytest.mark.parametrize("length", [1e-15, 1e-22, 1e-30])
def test_an_interest_whose_square_vanishes_fits_nothing(length):
    items = torch.randn(2, 5, 4)
    interests = Interests(length * torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))
    assert largest_cosine(interests, items).abs().max() < 0.1


def test_the_mean_rule_compares_the_mean_over_items():
    found = torch.tensor([[0.01, 0.03, 9.0], [0.2, 0.0, 0.0], [0.05, 0.0, 0.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    assert user_fit(found, mask, DetectorConfig(rule="mean")) == pytest.approx([0.02, 0.1, 0.05, math.inf])


@pytest.mark.parametrize("rule", ["count", "share"])
def test_the_counting_rules_count_items_below_the_threshold(device, rule):
    draw = torch.Generator().manual_seed(0)
    found, mask = torch.rand(50, 7, generator=draw), torch.rand(50, 7, generator=draw) < 0.7
    mask[0] = False
    for items in range(9):
        config = DetectorConfig(rule=rule, items=items, share=items / 9)
        levels = call_on(device, user_fit, found, mask, config)
        least = items if rule == "count" else items / 9 * mask.sum(1)
        for c1 in (0.1, 0.5, 0.9):
            assert torch.equal(levels < c1, ((found < c1) & mask).sum(1) > least)


@pytest.mark.parametrize(("key", "value"), [("c1", -1), ("items", -1), ("share", 1.0), ("delta_k", 0), ("k_max", 0)])
def test_impossible_values_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"strategy\.imsr\.detector\.{key}"):
        DetectorConfig(**{key: value})


@pytest.mark.parametrize("measure", ["divergence", "cosine", "percentile"])
@pytest.mark.parametrize("rule", ["mean", "count", "share"])
def test_a_rank_without_users_in_a_step(measure, rule):
    config = DetectorConfig(measure=measure, rule=rule)
    no_users = Interests(torch.empty(0, 0, 4), torch.empty(0, 0, dtype=torch.bool))
    found = item_fit(no_users, torch.empty(0, 0, 4), config, torch.randn(3, 4))
    assert user_fit(found, torch.empty(0, 0, dtype=torch.bool), config).shape == (0,)
