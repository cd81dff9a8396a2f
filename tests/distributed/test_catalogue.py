import itertools
from unittest.mock import patch

import pytest
import torch
from torchrec import JaggedTensor

from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig, _kernels
from dist_imsr.distributed.topology import Topology
from tests.ranks import on_devices, run_ranks

ITEMS, DIM, RATE = 29, 8, 0.5


def _jagged(ids, lengths=None, device="cpu"):
    lengths = torch.tensor(lengths or [len(ids)], device=device)
    return JaggedTensor(torch.tensor(ids, dtype=torch.int64, device=device), lengths=lengths)


def _whole(catalogue, tensor):
    """All ranks' rows of a small table, for comparison alone."""
    longest = -(-catalogue.capacity // catalogue.topology.world_size)
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    return catalogue.topology.gather(padded).flatten(0, 1)[:ITEMS].cpu()


def _train(topology, config, steps=3):
    """Steps whose gradients are known: each looked-up row is pulled by its own value times its place in the world."""
    catalogue = Catalogue(config, [ITEMS], DIM, 7, topology)
    catalogue.set_learning_rate(RATE)
    first = _whole(catalogue, catalogue.weight)
    shared, queries = [3, 3, 28], [[0, 5, 0], [28], [], [5, 17, 11, 11]]
    for _ in range(steps):
        mine = queries[topology.rank :: topology.world_size]
        flat, lengths = [item for query in mine for item in query], [len(query) for query in mine]
        sequences = _jagged(flat, lengths, topology.device), _jagged(shared, device=topology.device)
        looked, common = catalogue.lookup(*sequences)
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
                catalogue.start_lookup(*following)
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
    """The same steps on an unsharded table, in float64: its weight, and the optimizer's moments."""
    weight = weight.double().requires_grad_()
    moment = torch.zeros(ITEMS if optimizer == "rowwise_adagrad" else (ITEMS, DIM), dtype=torch.float64)
    square = torch.zeros_like(moment)
    shared, queries = [3, 3, 28], [0, 5, 0, 28, 5, 17, 11, 11]
    for step in range(1, steps + 1):
        loss = (weight[queries] ** 3).sum() + (weight[shared] ** 2).sum()
        (gradient,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            if optimizer == "sgd":
                weight -= RATE * gradient
            elif optimizer == "adagrad":
                moment += gradient**2
                weight -= RATE * gradient / (moment.sqrt() + 1e-8)
            elif optimizer == "adam":
                moment.lerp_(gradient, 1 - 0.9)
                square.lerp_(gradient**2, 1 - 0.999)
                weight -= RATE * moment / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            else:
                moment += (gradient**2).mean(1)
                weight -= RATE * gradient / (moment.sqrt().unsqueeze(1) + 1e-8)
    return weight.detach(), {"sgd": [], "adam": [moment, square]}.get(optimizer, [moment])


_EVERYWHERE = ["rowwise_adagrad", "adagrad", "sgd"]


@on_devices(
    *("world_size", "optimizer"),
    cpu=[(world_size, optimizer) for world_size in (1, 2, 3) for optimizer in _EVERYWHERE],
    cuda=[(world_size, optimizer) for world_size in (1, 2) for optimizer in (*_EVERYWHERE, "adam")],
)
def test_sharded_equals_unsharded(device, world_size, optimizer):
    config = CatalogueConfig(optimizer=optimizer, headroom=0.0)
    for first, state in run_ranks(world_size, _train, config, device=device):
        weight, moments = _reference(first, optimizer)
        torch.testing.assert_close(state["weight"].double(), weight, rtol=1e-5, atol=1e-6)
        found = [value for name, value in state.items() if name != "weight"]
        for one, moment in zip(found, moments, strict=True):
            torch.testing.assert_close(one.double(), moment, rtol=1e-5, atol=1e-7)
        untouched = [item for item in range(ITEMS) if item not in {0, 3, 5, 11, 17, 28}]
        assert torch.equal(state["weight"][untouched], first[untouched])


@pytest.mark.cuda
def test_first_rows_depend_on_no_device():
    config = CatalogueConfig(optimizer="sgd", headroom=0.0)
    found, wanted = (run_ranks(1, _train, config, 0, device=device)[0][0] for device in ("cuda", "cpu"))
    assert torch.equal(found, wanted)  # whole numbers and powers of two, one product and one rounding


def test_first_rows_depend_on_no_world_size():
    config = CatalogueConfig(headroom=0.0)
    worlds = [run_ranks(world_size, _train, config, 0)[0][0] for world_size in (1, 2, 4)]
    assert torch.equal(worlds[0], worlds[1])
    assert torch.equal(worlds[0], worlds[2])
    assert worlds[0].std() > 0.1


def _grow(topology, config):
    catalogue, device = Catalogue(config, [ITEMS], DIM, 7, topology), topology.device
    indexed = _whole(catalogue, catalogue.weight)[[1, 14, 28]].to(device)
    looked, nothing = catalogue.lookup(_jagged([1, 14, 28], device=device), _jagged([], device=device))
    assert torch.equal(looked, indexed)
    assert not len(nothing)
    looked.square().sum().backward()
    before = {name: _whole(catalogue, rows.values) for name, rows in catalogue.state.items()}
    assert not catalogue.grow(catalogue.capacity)
    grown = catalogue.grow(70)
    after = {name: _whole(catalogue, rows.values) for name, rows in catalogue.state.items()}
    drawn = Catalogue(CatalogueConfig(headroom=0.0), [70], DIM, 7, topology)
    rows = range(max(ITEMS, catalogue.rows.start), max(ITEMS, catalogue.rows.stop))
    new = catalogue.weight[rows.start - catalogue.rows.start : rows.stop - catalogue.rows.start].clone()
    [looked] = catalogue.lookup(_jagged([1, 69], device=device))  # the grown table trains
    looked.square().sum().backward()
    [wanted] = drawn.lookup(_jagged(list(rows), device=device))
    assert torch.equal(new, wanted)
    return grown, catalogue.capacity, before, after, catalogue.learning_rate


@on_devices(
    *("world_size", "sharding", "optimizer"),
    cpu=[(3, sharding, "adagrad") for sharding in ("row_wise", "planner")],
    cuda=[(world_size, sharding, "adam") for world_size in (1, 2) for sharding in ("row_wise", "planner")],
)
def test_growth_moves_rows_and_state_bit_identically(device, world_size, sharding, optimizer):
    config = CatalogueConfig(optimizer=optimizer, headroom=0.0, sharding=sharding, learning_rate=0.3)
    for grown, capacity, before, after, rate in run_ranks(world_size, _grow, config, device=device):
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


def _counted(topology):
    """What the kernel goes by after each step, with lookups without a gradient between, a new count and a new table."""
    catalogue, seen = Catalogue(CatalogueConfig(headroom=0.0), [ITEMS], DIM, 7, topology), []
    for steps in (None, None, 40, None):
        catalogue.steps = steps or catalogue.steps
        with torch.no_grad():
            catalogue.lookup(_jagged([1, 2]))
        catalogue.lookup(_jagged([1, 2]))[0].sum().backward()
        kernels = _kernels(catalogue.table)
        seen.append((catalogue.steps, *(int(count) for kernel in kernels for count in (kernel.iter, kernel.iter_cpu))))
        catalogue.grow(ITEMS + len(seen) // 3)
    return seen


def test_an_update_counts_once_and_nothing_else_does():
    assert run_ranks(2, _counted) == [[(count, count, count) for count in (1, 2, 41, 42)]] * 2
