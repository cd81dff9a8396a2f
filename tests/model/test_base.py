import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_imsr.model.extractors import BASE_MODELS, ModelConfig, build_extractor
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.mimn import MIMNConfig
from tests.model.histories import histories, initial_start

STATEFUL = ["limarec", "mimn"]


def _built(base, seed=0, dtype=torch.float64):
    mimn = MIMNConfig(memory=6, controller=9, induction=5)
    module = build_extractor(ModelConfig(base, dim=8, interests=3, mimn=mimn)).to(dtype)
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module


def test_base_models_with_a_state():
    assert [base for base in BASE_MODELS if build_extractor(ModelConfig(base)).state_dim] == ["mimn", "limarec"]


@settings(max_examples=60, deadline=None)
@given(
    base=st.sampled_from(STATEFUL),
    pieces_of_users=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=4),
    padding=st.integers(0, 2),
    seed=st.integers(0, 1000),
)
def test_a_history_in_pieces_equals_the_whole_history(base, pieces_of_users, padding, seed):
    """Each user's sequence in pieces of its own lengths, some of them empty, all of them padded."""
    module = _built(base, seed)
    items, mask = histories([sum(pieces) + padding for pieces in pieces_of_users], 8)
    mask &= torch.arange(items.shape[1]) < torch.tensor([sum(pieces) for pieces in pieces_of_users]).unsqueeze(1)
    whole = module(items, mask, initial_start(module, len(pieces_of_users), 8))
    states, done = None, [0] * len(pieces_of_users)
    for number in range(3):
        lengths = [pieces[number] for pieces in pieces_of_users]
        part, mask_of_part = histories([length + padding for length in lengths], 8)
        mask_of_part &= torch.arange(part.shape[1]) < torch.tensor(lengths).unsqueeze(1)
        for user, length in enumerate(lengths):
            part[user, :length] = items[user, done[user] : done[user] + length]
            done[user] += length
        interests = module(part, mask_of_part, initial_start(module, len(pieces_of_users), 8, states))
        states = interests.states.detach()
    torch.testing.assert_close(interests.states, whole.states, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(interests.vectors, whole.vectors, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("base", STATEFUL)
@pytest.mark.parametrize("positions", [0, 3])
def test_padding_keeps_a_state_bit_for_bit(base, positions):
    module = _built(base, dtype=torch.float32)
    items, mask = histories([4, 2], 8, torch.float32)
    states = module(items, mask, initial_start(module, 2, 8)).states
    padding = torch.full((2, positions, 8), 9.0), torch.zeros(2, positions, dtype=torch.bool)
    assert torch.equal(module(*padding, initial_start(module, 2, 8, states)).states, states)


@pytest.mark.parametrize("base", STATEFUL)
def test_gradients_are_finite_and_reach_every_parameter(base):
    module = _built(base, dtype=torch.float32)
    items, mask = histories([40, 1], 8, torch.float32)
    items[0, 3:] = items[0, :1]  # and zeros, where a norm has no derivative
    items[1] = 0
    items.requires_grad_()
    interests = module(items, mask, initial_start(module, 2, 8))
    (interests.vectors.square().sum() + module.regularisation(interests)).backward()
    assert items.grad.isfinite().all()
    assert not items.grad[~mask].any()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("base", STATEFUL)
@pytest.mark.parametrize("length", [0, 2])
def test_a_rank_without_users_has_gradients_of_zero(base, length):
    module = _built(base, dtype=torch.float32)
    no_users = Interests(torch.zeros(0, 0, 8), torch.zeros(0, 0, dtype=torch.bool))
    start = Start(no_users, states=torch.zeros(0, 0, module.state_dim))
    interests = module(torch.zeros(0, length, 8), torch.zeros(0, length, dtype=torch.bool), start)
    assert interests.vectors.shape == no_users.vectors.shape
    assert interests.states.shape == (0, 0, module.state_dim)
    (interests.vectors.sum() + module.regularisation(interests)).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("base", STATEFUL)
def test_a_state_is_kept_in_full_precision_under_autocast(base):
    module = _built(base, dtype=torch.float32)
    items, mask = histories([5, 2], 8, torch.float32)
    start = initial_start(module, 2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        interests = module(items, mask, start)
    assert torch.equal(interests.states, module(items, mask, start).states)


def test_the_last_users_keep_their_states():
    module = _built("limarec")
    start = initial_start(module, 3, 8, torch.randn(3, module.interests, module.state_dim))
    assert torch.equal(start.last(2, 8).states, start.states[1:])
    assert start.last(2, 8).interests.mask.shape == (2, module.interests)
