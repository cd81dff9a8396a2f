import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_imsr.model.retainers import RETAINERS, Drift, RetainerConfig
from tests import reference
from tests.devices import call_on


def _drift(users, targets, negatives, dim, seed):
    """Users of (existing, new) interests each, padded with nonzero numbers."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    most = max(old + new for old, new in users)
    slot = torch.arange(most)
    existing = slot < torch.tensor([old for old, _ in users]).unsqueeze(1)
    mask = slot < torch.tensor([old + new for old, new in users]).unsqueeze(1)
    before, now = normal(len(users), most, dim), normal(len(users), most, dim)
    target_mask = torch.rand(len(users), targets, generator=draw) < 0.7
    wanted = normal(len(users), targets, dim)
    return Drift(before, now, existing, mask, wanted, now @ wanted.mT, target_mask, normal(negatives, dim))


def _with_student(drift, now):
    return drift._replace(now=now, agreement=now @ drift.targets.mT)


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(RETAINERS)),
    users=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3)).filter(any), min_size=1, max_size=4),
    targets=st.integers(1, 5),
    negatives=st.integers(1, 5),
    tau=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 1000),
)
def test_losses_equal_the_equations(device, name, users, targets, negatives, tau, seed):
    drift = _drift(users, targets, negatives, 4, seed)
    wanted = 0.0
    for user, (old, new) in enumerate(users):
        before, now = drift.before[user, :old].numpy(), drift.now[user, : old + new].numpy()
        for target in drift.targets[user, drift.target_mask[user]].numpy():
            wanted += reference.retention(name, before, now, target, drift.negatives.numpy(), tau)
    np.testing.assert_allclose(call_on(device, RETAINERS[name], drift, tau), wanted, rtol=1e-10, atol=1e-10)
    single = Drift(*(value.float() if value.is_floating_point() else value for value in drift))
    np.testing.assert_allclose(call_on(device, RETAINERS[name], single, tau), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RETAINERS)
def test_gradients_reach_the_student_alone(name):
    drift = _drift([(2, 1), (0, 2), (3, 0)], 4, 3, 4, seed=1)
    before = drift.before.clone().requires_grad_()
    now = drift.now.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda now: RETAINERS[name](_with_student(drift, now), 2.0), (now,))
    if name != "dir":
        loss = RETAINERS[name](_with_student(drift, now)._replace(before=before), 2.0)
        assert torch.autograd.grad(loss, before, allow_unused=True) == (None,)


@pytest.mark.parametrize("name", RETAINERS)
def test_the_loss_is_smallest_at_the_teacher(name):
    drift = _drift([(2, 1), (3, 0)], 4, 3, 4, seed=2)
    same = _with_student(drift, drift.before.clone().requires_grad_())
    (gradient,) = torch.autograd.grad(RETAINERS[name](same, 1.0), same.now)
    assert gradient.abs().max() < 1e-9
    assert RETAINERS[name](same, 1.0) < RETAINERS[name](drift, 1.0)


@pytest.mark.parametrize(("key", "value"), [("weight", -1), ("tau", 0)])
def test_impossible_values_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"strategy\.imsr\.retainer\.{key}"):
        RetainerConfig(**{key: value})
