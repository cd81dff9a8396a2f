import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_imsr.model.interests import Interests
from dist_imsr.model.scoring import Scoring, attend, candidates, distillation, sampled_softmax, score
from tests import reference
from tests.devices import call_on


def _interests(counts, dim, seed):
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
    vectors = torch.randn(*mask.shape, dim, generator=draw, dtype=torch.float64)
    return Interests(vectors, mask), draw


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any),
    items=st.integers(1, 5),
    how=st.sampled_from(["attentive", "max"]),
    seed=st.integers(0, 1000),
)
def test_scores_equal_the_equations(device, counts, items, how, seed):
    interests, draw = _interests(counts, 4, seed)
    shared = torch.randn(items, 4, generator=draw, dtype=torch.float64)
    own = torch.randn(len(counts), items, 4, generator=draw, dtype=torch.float64)
    of_shared, of_own = (call_on(device, score, interests, ones, how) for ones in (shared, own))
    for user, count in enumerate(counts):
        vectors = interests.vectors[user, :count].numpy()
        for item in range(items):
            wanted = reference.score(vectors, shared[item].numpy(), how)
            np.testing.assert_allclose(of_shared[user, item], wanted, atol=1e-12)
            wanted = reference.score(vectors, own[user, item].numpy(), how)
            np.testing.assert_allclose(of_own[user, item], wanted, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    each=st.integers(1, 3),
    negatives=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    seed=st.integers(0, 1000),
)
def test_loss_equals_the_equations(device, counts, each, negatives, seed):
    interests, draw = _interests(counts, 4, seed)
    catalogue = torch.randn(7, 4, generator=draw, dtype=torch.float64)
    targets = torch.randint(7, (len(counts), each), generator=draw)
    agreement, ids = interests.vectors @ catalogue[targets].mT, targets.flatten()
    users = call_on(device, attend, interests, agreement)
    inputs = users.flatten(0, 1), catalogue[ids], catalogue[negatives], ids, torch.tensor(negatives)
    found = call_on(device, sampled_softmax, call_on(device, candidates, *inputs))
    wanted = 0.0
    for user, count in enumerate(counts):
        for place, target in enumerate(targets[user].tolist()):
            attended = reference.attend(interests.vectors[user, :count].numpy(), catalogue[target].numpy())
            np.testing.assert_allclose(users[user, place], attended, atol=1e-12)
            sampled = catalogue[negatives].numpy()
            wanted += reference.sampled_softmax(attended, catalogue[target].numpy(), sampled, target, negatives)
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (3, 0), (1, 1), (20, 30)])
def test_all_negatives_that_are_the_target_are_masked(counts, dtype):
    draw = torch.Generator().manual_seed(0)
    ids, negatives = (torch.randint(6, (count,), generator=draw, dtype=dtype) for count in counts)
    users, targets, others = (torch.randn(count, 4, generator=draw) for count in (counts[0], *counts))
    found = candidates(users, targets, others, ids, negatives).others
    smallest = torch.finfo(torch.float32).min
    assert torch.equal(found, (users @ others.T).masked_fill(ids[:, None] == negatives, smallest))


def test_likelier_negatives_count_less():
    draw = torch.Generator().manual_seed(0)
    users, catalogue = (torch.randn(n, 4, generator=draw, dtype=torch.float64) for n in (3, 7))
    ids, negatives, log_q = torch.tensor([0, 3, 2]), torch.tensor([3, 1, 2, 1]), torch.randn(7, generator=draw).double()
    found = sampled_softmax(
        candidates(users, catalogue[ids], catalogue[negatives], ids, negatives, log_q[ids], log_q[negatives])
    )
    scores, wanted = (users @ catalogue.T - log_q).numpy(), 0.0
    for own, target in zip(scores, ids.tolist(), strict=True):
        others = [own[one] for one in negatives.tolist() if one != target]
        wanted += np.log(np.exp([own[target], *others]).sum()) - own[target]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_distillation_equals_the_equations(device):
    draw = torch.Generator().manual_seed(0)
    ids, negatives = torch.tensor([0, 3, 2, 2, 5]), torch.tensor([3, 1, 2])
    sides = []
    for _ in range(2):
        users, catalogue = (torch.randn(n, 4, generator=draw, dtype=torch.float64) for n in (5, 7))
        sides.append(
            (users.numpy(), catalogue.numpy(), candidates(users, catalogue[ids], catalogue[negatives], ids, negatives))
        )
    wanted = 0.0
    for place, target in enumerate(ids.tolist()):
        items = [target, *(one for one in negatives.tolist() if one != target)]
        now, then = (
            np.exp(catalogue[items] @ users[place]) / np.exp(catalogue[items] @ users[place]).sum()
            for users, catalogue, _ in sides
        )
        wanted += (then * np.log(then / now)).sum()
    (*_, now), (*_, then) = sides
    np.testing.assert_allclose(call_on(device, distillation, now, then), wanted, rtol=1e-12)
    assert abs(distillation(now, now)) < 1e-12
    last = distillation(now.last(2), then.last(2))
    assert 0 < last < wanted


def test_gradients():
    interests, draw = _interests([1, 3], 4, seed=0)
    catalogue = torch.randn(6, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    targets, negatives = torch.tensor([0, 1]), torch.tensor([1, 2, 3])

    def loss(vectors, catalogue):
        users = attend(Interests(vectors, interests.mask), vectors @ catalogue[targets].unsqueeze(-1)).squeeze(1)
        return sampled_softmax(candidates(users, catalogue[targets], catalogue[negatives], targets, negatives))

    assert torch.autograd.gradcheck(loss, (interests.vectors.requires_grad_(), catalogue))


def test_negatives_equal_to_the_target_give_no_loss():
    user, target = torch.randn(2, 1, 4, requires_grad=True)
    loss = sampled_softmax(candidates(user, target, target, torch.tensor([3]), torch.tensor([3])))
    assert loss == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, (user, target)))


@pytest.mark.parametrize("how", ["attentive", "max"])
@pytest.mark.parametrize(("scale", "bias"), [(1.0, False), (4.0, False), (4.0, True), (0.5, True)])
def test_queries_and_rows_give_scaled_scores_with_biases(how, scale, bias):
    draw = torch.Generator().manual_seed(0)
    mask = torch.arange(3) < torch.tensor([[3], [1], [0]])
    vectors = torch.randn(3, 3, 8, generator=draw, dtype=torch.float64) * mask.unsqueeze(-1)
    scoring = Scoring(how, scale, bias)
    rows = torch.randn(5, scoring.row_width(8), generator=draw, dtype=torch.float64)
    rows[:, 9:] = 0  # columns that only fill up the row
    found = score(scoring.queries(Interests(vectors, mask)), rows, how)
    for user, count in enumerate(mask.sum(1).tolist()):
        for item, row in enumerate(rows.numpy()):
            scaled = scale * vectors[user, :count].numpy()
            wanted = reference.score(scaled, row[:8], how) + (row[8] if bias else 0) if count else 0
            assert found[user, item] == pytest.approx(wanted)
