import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from dist_imsr.config import section_of
from dist_imsr.model.base import Extractor
from dist_imsr.model.extractors import BASE_MODELS, ModelConfig, build_extractor, register_base_model
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.linear_attention import LimaRecConfig
from dist_imsr.model.mimn import MIMNConfig
from dist_imsr.model.routing import DynamicRouting, squash
from dist_imsr.model.self_attention import SelfAttention
from tests import reference
from tests.devices import call_on, on


def _block(lengths, counts, dim, seed, dtype=torch.float64, repeat=False):
    """Users of ragged histories and interests, padded with nonzero numbers."""
    draw = torch.Generator().manual_seed(seed)
    items = torch.randn(len(lengths), max(lengths), dim, generator=draw, dtype=dtype)
    start = torch.randn(len(counts), max(counts), dim, generator=draw, dtype=dtype)
    if repeat:
        items[:] = items[:, :1]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    interest_mask = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
    return items, mask, Interests(start, interest_mask)


users_drawn = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 9)), min_size=1, max_size=4)


def _carried(interests, draw):
    return torch.randint(0, 3, interests.mask.shape, generator=draw).double() * 0.75


def _single(value):
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@settings(max_examples=60, deadline=None)
@given(
    users=users_drawn,
    dim=st.sampled_from([4, 8]),
    iterations=st.integers(1, 4),
    normalise=st.sampled_from(["interests", "items"]),
    repeat=st.booleans(),
    carries=st.booleans(),
    random=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_routing_equals_the_equations(device, users, dim, iterations, normalise, repeat, carries, random, seed):
    lengths, counts = zip(*users, strict=True)
    items, mask, stored = _block(lengths, counts, dim, seed, repeat=repeat)
    draw = torch.Generator().manual_seed(seed)
    module = DynamicRouting(dim, iterations, normalise).double()
    torch.nn.init.normal_(module.transform.weight, std=dim**-0.5, generator=draw)
    weight = module.transform.weight.detach().numpy()
    carried = _carried(stored, draw) if carries else None
    logits = torch.randn(*stored.mask.shape, max(lengths), generator=draw, dtype=torch.float64) if random else None
    found = call_on(device, module, items, mask, Start(stored, carried, logits))
    start = Start(Interests(stored.vectors.float(), stored.mask), _single(carried), _single(logits))
    single = call_on(device, module.float(), items.float(), mask, start)
    for user, (length, count) in enumerate(users):
        wanted = reference.route(
            items[user, :length].numpy(),
            stored.vectors[user, :count].numpy(),
            weight,
            iterations,
            normalise,
            None if carried is None else carried[user, :count].numpy(),
            None if logits is None else logits[user, :count, :length].numpy(),
        )
        np.testing.assert_allclose(found.vectors[user, :count].detach(), wanted, atol=1e-10)
        np.testing.assert_allclose(single.vectors[user, :count].detach(), wanted, atol=1e-5)
        assert not found.vectors[user, count:].any()


@settings(max_examples=60, deadline=None)
@given(
    users=users_drawn,
    dim=st.sampled_from([4, 8]),
    positions=st.booleans(),
    repeat=st.booleans(),
    carries=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_self_attention_equals_the_equations(device, users, dim, positions, repeat, carries, seed):
    lengths, counts = zip(*users, strict=True)
    items, mask, stored = _block(lengths, counts, dim, seed, repeat=repeat)
    draw = torch.Generator().manual_seed(seed)
    module = SelfAttention(dim, 6, positions=7 if positions else 0).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, generator=draw)
    queries = torch.randn(*stored.mask.shape, 6, generator=draw, dtype=torch.float64)
    carried = _carried(stored, draw) if carries else None
    found = call_on(device, module, items, mask, Start(stored, carried, queries=queries))
    on("cpu", module)
    weight = module.transform.weight.detach().numpy()
    placed = module.positions.detach().numpy() if positions else None
    start = Start(Interests(stored.vectors.float(), stored.mask), _single(carried), queries=queries.float())
    single = call_on(device, module.float(), items.float(), mask, start)
    for user, (length, count) in enumerate(users):
        wanted = reference.self_attention(
            items[user, :length].numpy(),
            stored.vectors[user, :count].numpy(),
            queries[user, :count].numpy(),
            weight,
            placed,
            np.zeros(count) if carried is None else carried[user, :count].numpy(),
        )
        np.testing.assert_allclose(found.vectors[user, :count].detach(), wanted, atol=1e-10)
        np.testing.assert_allclose(single.vectors[user, :count].detach(), wanted, atol=1e-5)
        assert not found.vectors[user, count:].any()


@pytest.mark.parametrize("logits", [None, torch.randn(2, 3, 5, dtype=torch.float64)])
def test_routing_gradients(logits, monkeypatch):
    items, mask, start = _block([3, 5], [2, 3], 4, seed=0)
    module = DynamicRouting(4).double()
    begin = Start(start, _carried(start, torch.Generator().manual_seed(0)), logits)
    # The gradient treats routing weights as constants, so finite differences must fix them.
    weights = module._weights(module.transform(items), mask, start.vectors, begin).detach()
    monkeypatch.setattr(module, "_weights", lambda *_: weights)

    def routed(weight, items):
        return torch.func.functional_call(module, {"transform.weight": weight}, (items, mask, begin)).vectors

    weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(routed, (weight, items.requires_grad_()))


def test_self_attention_gradients():
    items, mask, stored = _block([3, 5], [2, 3], 4, seed=0)
    module = SelfAttention(4, 3, positions=5).double()
    carried = _carried(stored, torch.Generator().manual_seed(0))

    def attend(weight, positions, items, queries):
        values = {"transform.weight": weight, "positions": positions}
        start = Start(stored, carried, queries=queries)
        return torch.func.functional_call(module, values, (items, mask, start)).vectors

    shapes = (3, 4), (5, 4), tuple(items.shape), (2, 3, 3)
    assert torch.autograd.gradcheck(
        attend, tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    )


def test_squash_is_finite_at_zero():
    zero = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    squash(zero).sum().backward()
    assert not squash(zero).any()
    assert zero.grad.isfinite().all()
    assert torch.autograd.gradcheck(squash, torch.randn(3, 4, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("module", [DynamicRouting(8), SelfAttention(8, 6, positions=9)])
def test_padding_changes_nothing(module):
    items, mask, stored = _block([3], [2], 8, seed=1, dtype=torch.float32)
    queries = torch.randn(1, 2, 6)

    def widened(tensor, by, value=9.0):
        return torch.nn.functional.pad(tensor, (*(0,) * 2 * (tensor.dim() - 2), 0, by), value=value)

    wide = Interests(widened(stored.vectors, 3), widened(stored.mask, 3, False))
    longer = Start(wide, widened(torch.ones(1, 2), 3), None, widened(queries, 3))
    found = module(widened(items, 4), widened(mask, 4, False), longer).vectors
    start = Start(stored, torch.ones(1, 2), None, queries)
    torch.testing.assert_close(found[:, :2], module(items, mask, start).vectors)


@pytest.mark.parametrize("module", [DynamicRouting(8), SelfAttention(8, 6)])
def test_a_user_without_items_keeps_carried_interests(module):
    stored = Interests(torch.randn(1, 2, 8), torch.ones(1, 2, dtype=torch.bool))
    empty = torch.zeros(1, 2, 8), torch.zeros(1, 2, dtype=torch.bool)
    start = Start(stored, torch.tensor([[2.0, 0.0]]), None, torch.randn(1, 2, 6))
    vectors = module(*empty, start).vectors.detach()
    assert torch.cosine_similarity(vectors[0, 0], stored.vectors[0, 0], dim=0) == pytest.approx(1)
    assert not vectors[0, 1].any()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dim", 0),
        ("dim", 6),
        ("interests", 0),
        ("iterations", 0),
        ("logit_scale", -1),
        ("query_dim", 0),
        ("positions", -1),
    ],
)
def test_impossible_values_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"model\.{key}"):
        ModelConfig(**{key: value})


@pytest.mark.parametrize("base", ["comirec_dr", "mind", "comirec_sa"])
def test_one_graph_serves_blocks_of_all_sizes(base):
    config, graphs = ModelConfig(base, dim=8, query_dim=8, positions=9), CompileCounter()
    eager, compiled = build_extractor(config), build_extractor(config)
    compiled.compile(dynamic=True, fullgraph=True, backend=graphs)
    for lengths, counts in (([6, 4, 2], [5, 3, 2]), ([7, 7, 3, 1], [5, 1, 2, 4]), ([3, 5], [4, 4])):
        items, mask, stored = _block(lengths, counts, 8, seed=0, dtype=torch.float32)
        logits = torch.randn(*stored.mask.shape, max(lengths))
        start = Start(stored, torch.rand(stored.mask.shape), logits, torch.randn_like(stored.vectors))
        torch.testing.assert_close(compiled(items, mask, start).vectors, eager(items, mask, start).vectors)
    assert graphs.frame_count == 1


@pytest.mark.parametrize("base", BASE_MODELS)
def test_every_build_has_the_same_initial_weights(base):
    torch.manual_seed(3)
    first, again = (build_extractor(ModelConfig(base, dim=8)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_section_comes_back_from_plain_values():
    section = ModelConfig("mimn", dim=8, mimn=MIMNConfig(memory=8), limarec=LimaRecConfig(3))
    assert section_of(ModelConfig, dataclasses.asdict(section)) == section
    assert section_of(ModelConfig, {"base": "mind"}) == ModelConfig("mind")
    with pytest.raises(ValueError, match="unknown"):
        section_of(ModelConfig, {"mimn": {"unknown": 1}})


@dataclasses.dataclass
class _MeanConfig:
    scale: float = 1.0


class _Mean(Extractor):
    """Every interest is the scaled mean of the items."""

    def __init__(self, config):
        super().__init__()
        self.scale = config.mean.scale

    def forward(self, items, mask, start):
        return start.interests.replace(self.scale * items.mean(1, keepdim=True).expand_as(start.interests.vectors))


@pytest.fixture
def registered(monkeypatch):
    """Registers a base model for one test."""
    monkeypatch.setattr(BASE_MODELS, "_entries", dict(BASE_MODELS._entries))
    register_base_model("mean", _MeanConfig)(_Mean)


def test_a_registered_base_model_is_built_from_its_own_section(registered):
    config = section_of(ModelConfig, {"base": "mean", "dim": 8, "mean": {"scale": 3.0}, "mimn": {"memory": 8}})
    assert isinstance(config, ModelConfig)
    assert (config.mean, config.mimn, config.limarec) == (_MeanConfig(3.0), MIMNConfig(memory=8), LimaRecConfig())
    extractor = build_extractor(config)
    assert isinstance(extractor, _Mean)
    items, mask, stored = _block([3], [2], 8, seed=0)
    torch.testing.assert_close(extractor(items, mask, Start(stored)).vectors[0, 1], 3 * items[0].mean(0))


def test_an_unknown_base_model_is_refused_with_the_known_names():
    names = "comirec_dr, mind, comirec_sa, mimn, limarec"
    with pytest.raises(ValueError, match=rf"model\.base: 'bert' is impossible here; expected one of {names}"):
        ModelConfig("bert")


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match=r"model\.base: 'mind' is registered twice"):
        register_base_model("mind")(_Mean)
