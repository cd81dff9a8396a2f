import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_imsr.model.interests import Interests
from dist_imsr.model.trimmer import TrimmerConfig, project
from tests import reference
from tests.devices import call_on, on


@settings(max_examples=80, deadline=None)
@given(
    users=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)), min_size=1, max_size=4),
    dim=st.sampled_from([4, 8]),
    kind=st.sampled_from(["independent", "dependent", "zero"]),
    seed=st.integers(0, 1000),
)
def test_projection_equals_the_equations(device, users, dim, kind, seed):
    draw = torch.Generator().manual_seed(seed)
    most = max(old + new for old, new in users)
    vectors = torch.randn(len(users), most, dim, generator=draw, dtype=torch.float64)
    if kind == "dependent":
        vectors[:, 1:3] = vectors[:, :1]
    if kind == "zero":
        vectors[:, :2] = 0
    slot = torch.arange(most)
    existing = slot < torch.tensor([old for old, _ in users]).unsqueeze(1)
    mask = slot < torch.tensor([old + new for old, new in users]).unsqueeze(1)
    start = Interests(vectors * mask.unsqueeze(-1), mask)
    found = call_on(device, project, start, existing)
    single = call_on(device, project, Interests(start.vectors.float(), mask), existing).vectors
    assert single.dtype == torch.float32
    for user, (old, new) in enumerate(users):
        assert torch.equal(found.vectors[user, :old], start.vectors[user, :old])
        for slot in range(old, old + new):
            wanted = reference.projected(vectors[user, :old].numpy(), vectors[user, slot].numpy())
            np.testing.assert_allclose(found.vectors[user, slot], wanted, atol=1e-9)
            np.testing.assert_allclose(single[user, slot], wanted, atol=1e-5)
        assert not found.vectors[user, old + new :].any()


def test_the_residual_is_zero_if_existing_interests_span_the_space():
    vectors = torch.randn(1, 7, 4, generator=torch.Generator().manual_seed(0))
    existing = torch.arange(7).unsqueeze(0) < 6
    residual = project(Interests(vectors, torch.ones(1, 7, dtype=torch.bool)), existing).vectors[0, 6]
    assert residual.norm() < 1e-3


def test_precision_under_autocast(device):
    vectors, existing = torch.randn(2, 5, 8, device=device), on(device, torch.arange(5).expand(2, 5) < 3)
    start = Interests(vectors, torch.ones(2, 5, dtype=torch.bool, device=device))
    with torch.autocast(device, torch.bfloat16):
        found = project(start, existing).vectors
    assert torch.equal(found, project(start, existing).vectors)


def test_gradients():
    existing = torch.tensor([[True, True, False, False], [True, False, False, False], [False] * 4])
    mask = torch.tensor([[True] * 4, [True, True, True, False], [True, True, False, False]])
    vectors = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: project(Interests(v, mask), existing).vectors, (vectors,))


def test_gradients_are_finite_at_zero_and_for_dependent_interests():
    vectors = torch.zeros(2, 3, 4)
    vectors[1] = 1.0
    vectors.requires_grad_()
    existing = torch.tensor([[True, True, False]] * 2)
    project(Interests(vectors, torch.ones(2, 3, dtype=torch.bool)), existing).vectors.sum().backward()
    assert vectors.grad.isfinite().all()


@pytest.mark.parametrize("norm", [1e-2, 1e-4, 1e-10, 1e-30])
def test_gradients_are_bounded_where_existing_interests_vanish(norm):
    vectors = torch.randn(1, 4, 8)
    vectors[:, :3] *= norm
    vectors.requires_grad_()
    existing = torch.arange(4).unsqueeze(0) < 3
    project(Interests(vectors, torch.ones(1, 4, dtype=torch.bool)), existing).vectors[0, 3].sum().backward()
    assert vectors.grad.abs().max() < 1e5


def test_interests_that_are_not_finite_stay_so():
    vectors = torch.randn(2, 3, 4)
    vectors[0] = torch.nan
    found = project(Interests(vectors, torch.ones(2, 3, dtype=torch.bool)), torch.tensor([[True, True, False]] * 2))
    assert found.vectors[0].isnan().all()
    assert found.vectors[1].isfinite().all()


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match=r"strategy\.imsr\.trimmer\.c2"):
        TrimmerConfig(c2=-1)
