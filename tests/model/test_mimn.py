import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.mimn import MemoryNetwork, MIMNConfig
from tests import reference
from tests.model.histories import histories, initial_start


def _module(slots, channels, seed, **changes):
    torch.manual_seed(seed)
    config = MIMNConfig(memory=3 * slots, controller=2 * slots, induction=5, channels=channels, **changes)
    module = MemoryNetwork(8, slots, config).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    slots=st.integers(1, 4),
    channels=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_memory_equals_the_equations(lengths, slots, channels, seed):
    channels = min(slots, channels)
    module = _module(slots, channels, seed, regularisation=0.3)
    items, mask = histories(lengths, 8)
    found = module(items, mask, initial_start(module, len(lengths), 8))
    weights = {name: value.numpy() for name, value in module.state_dict().items()}
    penalty = 0.0
    for user, length in enumerate(lengths):
        wanted, used = reference.memory_network(items[user, :length].numpy(), weights, channels)
        np.testing.assert_allclose(found.vectors[user].detach(), wanted, atol=1e-10)
        penalty += 0.3 * reference.utilisation(used)
    assert module.regularisation(found).item() == pytest.approx(penalty, abs=1e-12)


def test_single_precision_is_close():
    module = _module(4, 4, seed=0)  # with fewer channels, rounding may choose another one
    items, mask = histories([7, 3], 8)
    found = module(items, mask, initial_start(module, 2, 8))
    single = module.float()(items.float(), mask, initial_start(module, 2, 8))
    torch.testing.assert_close(single.vectors, found.vectors.float(), atol=1e-4, rtol=1e-4)


def test_the_regularisation_spreads_the_writes():
    module = _module(4, 2, seed=1, regularisation=1.0)
    items, mask = histories([9] * 8, 8)
    start = initial_start(module, 8, 8)
    optimizer = torch.optim.SGD([module.balance], lr=0.5)
    penalties = []
    for _ in range(20):
        penalty = module.regularisation(module(items, mask, start))
        penalties.append(penalty.item())
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
    assert penalties[-1] < 0.9 * penalties[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("memory", 0), ("controller", 0), ("induction", 0), ("channels", 0), ("regularisation", -1)],
)
def test_impossible_values_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"model\.mimn\.{key}"):
        MIMNConfig(**{key: value})


@pytest.mark.parametrize(("key", "value"), [("memory", 62), ("controller", 62), ("channels", 5)])
def test_widths_that_do_not_fit_the_slots_are_refused(key, value):
    config = MIMNConfig(**{key: value})
    with pytest.raises(ValueError, match=rf"model\.mimn\.{key}.*model\.interests \(4\)"):
        ModelConfig("mimn", mimn=config)
    ModelConfig("limarec", mimn=config)  # not used by limarec
