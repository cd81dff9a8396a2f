import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_imsr.model.extractors import BASES, ModelConfig, build_extractor
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.mimn import MIMNConfig
from tests.model.lives import beginning, histories

KEEPING = ["limarec", "mimn"]


def _built(base, seed=0, dtype=torch.float64):
    own = MIMNConfig(memory=6, controller=9, induction=5)
    module = build_extractor(ModelConfig(base, dim=8, interests=3, mimn=own)).to(dtype)
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module


def test_who_keeps_a_state():
    assert [base for base in BASES if build_extractor(ModelConfig(base)).state_dim] == ["mimn", "limarec"]


@settings(max_examples=60, deadline=None)
@given(
    base=st.sampled_from(KEEPING),
    lives=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=4),
    padding=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_a_life_in_pieces_is_the_life_as_a_whole(base, lives, padding, seed):
    """Each user's sequence in pieces of its own lengths, some of them empty, all of them padded."""
    module = _built(base, seed)
    items, mask = histories([sum(pieces) + padding for pieces in lives], 8)
    mask &= torch.arange(items.shape[1]) < torch.tensor([sum(pieces) for pieces in lives]).unsqueeze(1)
    whole = module(items, mask, beginning(module, len(lives), 8))
    states, done = None, [0] * len(lives)
    for number in range(3):
        lengths = [pieces[number] for pieces in lives]
        piece, here = histories([length + padding for length in lengths], 8)
        here &= torch.arange(piece.shape[1]) < torch.tensor(lengths).unsqueeze(1)
        for user, length in enumerate(lengths):
            piece[user, :length] = items[user, done[user] : done[user] + length]
            done[user] += length
        found = module(piece, here, beginning(module, len(lives), 8, states))
        states = found.states.detach()
    torch.testing.assert_close(found.states, whole.states, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(found.vectors, whole.vectors, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("base", KEEPING)
@pytest.mark.parametrize("places", [0, 3])
def test_padding_leaves_a_state_bit_for_bit(base, places):
    module = _built(base, dtype=torch.float32)
    items, mask = histories([4, 2], 8, torch.float32)
    lived = module(items, mask, beginning(module, 2, 8)).states
    nothing = torch.full((2, places, 8), 9.0), torch.zeros(2, places, dtype=torch.bool)
    assert torch.equal(module(*nothing, beginning(module, 2, 8, lived)).states, lived)


@pytest.mark.parametrize("base", KEEPING)
def test_gradients_are_finite_and_reach_every_parameter(base):
    module = _built(base, dtype=torch.float32)
    items, mask = histories([40, 1], 8, torch.float32)
    items[0, 3:] = items[0, :1]  # and zeros, where a norm has no derivative
    items[1] = 0
    items.requires_grad_()
    found = module(items, mask, beginning(module, 2, 8))
    (found.vectors.square().sum() + module.regularisation(found)).backward()
    assert items.grad.isfinite().all()
    assert not items.grad[~mask].any()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("base", KEEPING)
@pytest.mark.parametrize("length", [0, 2])
def test_a_rank_without_users_has_gradients_of_zero(base, length):
    module = _built(base, dtype=torch.float32)
    nobody = Interests(torch.zeros(0, 0, 8), torch.zeros(0, 0, dtype=torch.bool))
    start = Start(nobody, states=torch.zeros(0, 0, module.state_dim))
    found = module(torch.zeros(0, length, 8), torch.zeros(0, length, dtype=torch.bool), start)
    assert found.vectors.shape == nobody.vectors.shape
    assert found.states.shape == (0, 0, module.state_dim)
    (found.vectors.sum() + module.regularisation(found)).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("base", KEEPING)
def test_a_state_is_kept_in_full_precision_under_autocast(base):
    module = _built(base, dtype=torch.float32)
    items, mask = histories([5, 2], 8, torch.float32)
    start = beginning(module, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(items, mask, start)
    assert torch.equal(found.states, module(items, mask, start).states)


def test_the_last_users_keep_their_states():
    module = _built("limarec")
    start = beginning(module, 3, 8, torch.randn(3, module.interests, module.state_dim))
    assert torch.equal(start.last(2, 8).states, start.states[1:])
    assert start.last(2, 8).interests.mask.shape == (2, module.interests)
