import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_imsr.model.linear_attention import LimaRecConfig, LinearAttention
from tests import reference
from tests.model.histories import histories, initial_start


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    interests=st.integers(1, 4),
    features=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_linear_attention_equals_the_equations(lengths, interests, features, seed):
    torch.manual_seed(seed)
    module = LinearAttention(8, interests, features).double()
    torch.nn.init.normal_(module.value.weight)
    items, mask = histories(lengths, 8)
    found = module(items, mask, initial_start(module, len(lengths), 8))
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    for user, length in enumerate(lengths):
        wanted = reference.linear_attention(items[user, :length].numpy(), weights, interests)
        np.testing.assert_allclose(found.vectors[user].detach(), wanted, atol=1e-10)
    single = module.float()(items.float(), mask, initial_start(module, len(lengths), 8))
    torch.testing.assert_close(single.vectors, found.vectors.float(), atol=1e-4, rtol=1e-4)


def test_interests_are_zero_before_the_first_interaction():
    module = LinearAttention(8, 2, 3)
    start = initial_start(module, 2, 8)
    found = module(torch.randn(2, 4, 8), torch.zeros(2, 4, dtype=torch.bool), start)
    assert not found.vectors.any()
    assert not found.states.any()


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match=r"model\.limarec\.features"):
        LimaRecConfig(features=0)
