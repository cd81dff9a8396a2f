import itertools
from unittest.mock import patch

import pytest
import torch
from torchrec import JaggedTensor

from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.distributed.topology import Topology
from tests.ranks import run_ranks

ITEMS, DIM, RATE = 29, 8, 0.5


def _jagged(ids, lengths=None):
    return JaggedTensor(torch.tensor(ids, dtype=torch.int64), lengths=torch.tensor(lengths or [len(ids)]))


def _whole(catalogue, tensor):
    """All ranks' rows of a small table, for comparison alone."""
    longest = -(-catalogue.capacity // catalogue.topology.world_size)
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    return catalogue.topology.gather(padded).flatten(0, 1)[:ITEMS].clone()


def _train(topology, config, steps=3):
    """Steps whose gradients are known: each looked-up row is pulled by its own value times its place in the world."""
    catalogue = Catalogue(config, [ITEMS], DIM, 7, topology)
    catalogue.set_learning_rate(RATE)
    first = _whole(catalogue, catalogue.weight)
    shared, queries = [3, 3, 28], [[0, 5, 0], [28], [], [5, 17, 11, 11]]
    for _ in range(steps):
        mine = queries[topology.rank :: topology.world_size]
        flat, lengths = [item for query in mine for item in query], [len(query) for query in mine]
        looked, common = catalogue.lookup(_jagged(flat, lengths), _jagged(shared))
        loss = (looked**3).sum() + (common**2).sum() / topology.world_size
        (loss * topology.world_size).backward()
    state = {name: _whole(catalogue, rows.values) for name, rows in catalogue.state.items()}
    return first, state


def _asking(topology, ahead):
    """Steps of which each is asked for during the one before it, among other lookups."""
    catalogue = Catalogue(CatalogueConfig(), [ITEMS], DIM, 7, topology)
    steps = [(_jagged([topology.rank, 3, 3], [1, 2]), _jagged([20 + step])) for step in range(4)]
    begun = []
    with patch.object(catalogue, "_ask", wraps=catalogue._ask) as asked:
        for step, following in itertools.zip_longest(steps, steps[1:]):
            begun.append(asked.call_count)
            looked, common = catalogue.lookup(*step)
            if ahead and following:
                catalogue.ask(*following)
            with torch.no_grad():
                catalogue.lookup(_jagged([1, 28]))
            (looked.square().sum() + common.square().sum()).backward()
    return catalogue.state["weight"].values.clone(), begun, asked.call_count


@pytest.mark.parametrize("world_size", [1, 3])
def test_what_is_asked_ahead_is_what_is_looked_up(world_size):
    for (ahead, begun, asked), (plain, *_) in zip(
        *(run_ranks(world_size, _asking, ahead) for ahead in (True, False)), strict=True
    ):
        assert torch.equal(ahead, plain)
        assert begun == [0, 3, 5, 7]  # each step but the first finds its own request
        assert asked == 8


def _reference(weight, optimizer, steps=3):
    """The same steps on an unsharded table, in float64."""
    weight = weight.double().requires_grad_()
    moment = torch.zeros(ITEMS if optimizer == "rowwise_adagrad" else (ITEMS, DIM), dtype=torch.float64)
    shared, queries = [3, 3, 28], [0, 5, 0, 28, 5, 17, 11, 11]
    for _ in range(steps):
        loss = (weight[queries] ** 3).sum() + (weight[shared] ** 2).sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            if optimizer == "sgd":
                weight -= RATE * gradient
            elif optimizer == "adagrad":
                moment += gradient**2
                weight -= RATE * gradient / (moment.sqrt() + 1e-8)
            else:
                moment += (gradient**2).mean(1)
                weight -= RATE * gradient / (moment.sqrt().unsqueeze(1) + 1e-8)
    return weight.detach(), moment


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_sharded_equals_unsharded(world_size, optimizer):
    config = CatalogueConfig(optimizer=optimizer, headroom=0.0)
    for first, state in run_ranks(world_size, _train, config):
        weight, moment = _reference(first, optimizer)
        torch.testing.assert_close(state["weight"].double(), weight, rtol=1e-5, atol=1e-6)
        if optimizer != "sgd":
            (found,) = (value for name, value in state.items() if name != "weight")
            torch.testing.assert_close(found.double(), moment, rtol=1e-5, atol=1e-7)
        untouched = [item for item in range(ITEMS) if item not in {0, 3, 5, 11, 17, 28}]
        assert torch.equal(state["weight"][untouched], first[untouched])


def test_first_rows_depend_on_no_world_size():
    config = CatalogueConfig(headroom=0.0)
    worlds = [run_ranks(world_size, _train, config, 0)[0][0] for world_size in (1, 2, 4)]
    assert torch.equal(worlds[0], worlds[1])
    assert torch.equal(worlds[0], worlds[2])
    assert worlds[0].std() > 0.1


def _grow(topology, config):
    catalogue = Catalogue(config, [ITEMS], DIM, 7, topology)
    looked, _ = catalogue.lookup(_jagged([1, 14, 28]), _jagged([]))
    looked.square().sum().backward()
    before = {name: _whole(catalogue, rows.values) for name, rows in catalogue.state.items()}
    assert not catalogue.grow(catalogue.capacity)
    grown = catalogue.grow(70)
    after = {name: _whole(catalogue, rows.values) for name, rows in catalogue.state.items()}
    drawn = Catalogue(CatalogueConfig(headroom=0.0), [70], DIM, 7, topology)
    rows = range(max(ITEMS, catalogue.rows.start), max(ITEMS, catalogue.rows.stop))
    new = catalogue.weight[rows.start - catalogue.rows.start : rows.stop - catalogue.rows.start].clone()
    looked, _ = catalogue.lookup(_jagged([1, 69]), _jagged([]))  # the grown table trains
    looked.square().sum().backward()
    wanted, _ = drawn.lookup(_jagged(list(rows)), _jagged([]))
    assert torch.equal(new, wanted)
    return grown, catalogue.capacity, before, after, catalogue.learning_rate


@pytest.mark.parametrize("sharding", ["row_wise", "planner"])
def test_growth_moves_rows_and_state_bit_identically(sharding):
    config = CatalogueConfig(optimizer="adagrad", headroom=0.0, sharding=sharding, learning_rate=0.3)
    for grown, capacity, before, after, rate in run_ranks(3, _grow, config):
        assert grown
        assert capacity == 70
        assert rate == 0.3
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert torch.equal(value, after[name])


def _bounds(topology):
    return Catalogue(CatalogueConfig(headroom=0.5), [100], DIM, 0, topology).rows


def test_headroom_and_shards():
    assert run_ranks(2, _bounds) == [range(75), range(75, 150)]


def test_adam_on_cpu_is_refused():
    with pytest.raises(ValueError, match=r"catalogue\.optimizer.*rowwise_adagrad"):
        Catalogue(CatalogueConfig(optimizer="adam"), [10], DIM, 0, Topology(0, 1, 1, torch.device("cpu")))
