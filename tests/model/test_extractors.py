import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_imsr.model.extractors import DynamicRouting, ModelConfig, build_extractor, squash
from dist_imsr.model.interests import Interests
from tests import reference


def _block(lengths, counts, dim, seed, dtype=torch.float64, repeat=False):
    """Users of ragged histories and interests, padded with numbers that would show if they were read."""
    draw = torch.Generator().manual_seed(seed)
    items = torch.randn(len(lengths), max(lengths), dim, generator=draw, dtype=dtype)
    start = torch.randn(len(counts), max(counts), dim, generator=draw, dtype=dtype)
    if repeat:
        items[:] = items[:, :1]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    interest_mask = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
    return items, mask, Interests(start, interest_mask)


@settings(max_examples=40, deadline=None)
@given(
    users=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9)), min_size=1, max_size=4),
    dim=st.sampled_from([4, 8]),
    iterations=st.integers(1, 4),
    normalise=st.sampled_from(["interests", "items"]),
    repeat=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_routing_equals_the_equations(users, dim, iterations, normalise, repeat, seed):
    lengths, counts = zip(*users, strict=True)
    items, mask, start = _block(lengths, counts, dim, seed, repeat=repeat)
    torch.manual_seed(seed)
    module = DynamicRouting(dim, iterations, normalise).double()
    torch.nn.init.normal_(module.transform.weight)
    weight = module.transform.weight.detach().numpy()
    found = module(items, mask, start)
    single = module.float()(items.float(), mask, Interests(start.vectors.float(), start.mask))
    for user, (length, count) in enumerate(users):
        wanted = reference.route(
            items[user, :length].numpy(), start.vectors[user, :count].numpy(), weight, iterations, normalise
        )
        np.testing.assert_allclose(found.vectors[user, :count].detach(), wanted, atol=1e-10)
        np.testing.assert_allclose(single.vectors[user, :count].detach(), wanted, atol=1e-4)
        assert not found.vectors[user, count:].any()


def test_gradients():
    items, mask, start = _block([3, 5], [2, 3], 4, seed=0)
    module = DynamicRouting(4).double()

    def last_round(weight, items):
        return torch.func.functional_call(module, {"transform.weight": weight}, (items, mask, start)).vectors

    # Routing weights are constants to the gradient, so only a single round from fixed weights is differentiable all
    # through; with uniform starts the weights do not move and finite differences agree.
    start = Interests(torch.zeros_like(start.vectors), start.mask)
    module.iterations = 1
    weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(last_round, (weight, items.requires_grad_()))


def test_squash_is_finite_at_zero():
    zero = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    squash(zero).sum().backward()
    assert not squash(zero).any()
    assert zero.grad.isfinite().all()
    assert torch.autograd.gradcheck(squash, torch.randn(3, 4, dtype=torch.float64, requires_grad=True))


def test_padding_changes_nothing():
    items, mask, start = _block([3], [2], 8, seed=1, dtype=torch.float32)
    module = DynamicRouting(8)
    wide = Interests(
        torch.nn.functional.pad(start.vectors, (0, 0, 0, 3), value=9.0), torch.nn.functional.pad(start.mask, (0, 3))
    )
    longer = torch.nn.functional.pad(items, (0, 0, 0, 4), value=7.0)
    found = module(longer, torch.nn.functional.pad(mask, (0, 4)), wide).vectors
    torch.testing.assert_close(found[:, :2], module(items, mask, start).vectors)


@pytest.mark.parametrize(("key", "value"), [("dim", 0), ("dim", 6), ("interests", 0), ("iterations", 0)])
def test_impossible_values_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"model\.{key}"):
        ModelConfig(**{key: value})


def test_every_base_builds():
    assert isinstance(build_extractor(ModelConfig(base="comirec_dr", dim=8)), DynamicRouting)
