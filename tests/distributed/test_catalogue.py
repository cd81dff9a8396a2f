import gc
import itertools
import weakref
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec import JaggedTensor

from dist_imsr.distributed import rows as rows_of_ranks
from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.distributed.topology import Topology
from tests.ranks import on_devices, run_ranks

ITEMS, DIM, RATE = 29, 8, 0.5


def _jagged(ids, lengths=None, device="cpu"):
    lengths = torch.tensor(lengths or [len(ids)], device=device)
    return JaggedTensor(torch.tensor(ids, dtype=torch.int64, device=device), lengths=lengths)


def _gathered(catalogue, tensor):
    """All ranks' rows of a small table."""
    longest = -(-catalogue.capacity // catalogue.topology.world_size)
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    return catalogue.topology.gather(padded).flatten(0, 1)[:ITEMS].cpu()


def _train(topology, config, steps=3):
    """Steps of a loss whose gradient is known for every row."""
    catalogue = Catalogue(config, [ITEMS], DIM, 7, topology)
    catalogue.set_learning_rate(RATE)
    first = _gathered(catalogue, catalogue.flushed_weight())
    shared, queries = [3, 3, 28], [[0, 5, 0], [28], [], [5, 17, 11, 11]]
    for _ in range(steps):
        mine = queries[topology.rank :: topology.world_size]
        flat, lengths = [item for query in mine for item in query], [len(query) for query in mine]
        sequences = _jagged(flat, lengths, topology.device), _jagged(shared, device=topology.device)
        own, common = catalogue.lookup(*sequences)
        loss = (own**3).sum() + (common**2).sum() / topology.world_size
        (loss * topology.world_size).backward()
    state = {name: _gathered(catalogue, rows.values) for name, rows in catalogue.flushed_state().items()}
    return first, state


class _NoWritesByIndex(TorchDispatchMode):
    """Refuses what copies a whole table on CUDA, to write some of its columns in a fixed order."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if "index_put" in operator.overloadpacket.__name__ and args[2].numel() > 1:
            assert args[0].is_contiguous(), operator
        return operator(*args, **kwargs or {})


def _grown_without_copies(topology):
    with _NoWritesByIndex():
        catalogue = Catalogue(CatalogueConfig(headroom=0.0), [ITEMS], DIM, 7, topology, extra=4)
        catalogue.grow(3 * ITEMS)
    return catalogue.flushed_weight()[:, DIM:].abs().sum().item()


def test_first_values_are_written_in_place():
    assert run_ranks(1, _grown_without_copies) == [0.0]


def _steps_with_prefetch(topology, prefetch, send=False):
    """Steps of which each is prefetched during the one before it, ids included or not, between other lookups."""
    catalogue = Catalogue(CatalogueConfig(), [ITEMS], DIM, 7, topology)
    steps = [(_jagged([topology.rank, 3, 3], [1, 2]), _jagged([20 + step])) for step in range(4)]
    requests_before = []
    with patch.object(catalogue._table, "start_lookup", wraps=catalogue._table.start_lookup) as start_lookup:
        for step, following in itertools.zip_longest(steps, steps[1:]):
            requests_before.append(start_lookup.call_count)
            own, common = catalogue.lookup(*step)
            if prefetch and following:
                catalogue.start_lookup(*following)
            with torch.no_grad():
                catalogue.lookup(_jagged([1, 28]))
            if send:
                catalogue.send_ids()
            (own.square().sum() + common.square().sum()).backward()
    return catalogue.flushed_state()["weight"].values.clone(), requests_before, start_lookup.call_count


@pytest.mark.parametrize("send", [False, True])
@pytest.mark.parametrize("world_size", [1, 3])
def test_prefetched_lookups_equal_those_without_prefetch(world_size, send):
    for (prefetched, requests_before, requests), (plain, *_) in zip(
        *(run_ranks(world_size, _steps_with_prefetch, *how) for how in ((True, send), (False,))), strict=True
    ):
        assert torch.equal(prefetched, plain)
        assert requests_before == [0, 3, 5, 7]  # each step but the first uses its own prefetched request
        assert requests == 8


def _reference(weight, optimizer, steps=3):
    """The same steps on an unsharded table, in float64: its weight, and the optimizer's moments.

    FBGEMM's Adam takes its betas as float32 and computes 1 - beta from them, which for beta2 = 0.999 differs from 0.001
    by 1.3e-5 of it. The reference starts from the same float32 values.
    """
    beta1, beta2 = torch.tensor([0.9, 0.999], dtype=torch.float32).double().tolist()
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
                moment.lerp_(gradient, 1 - beta1)
                square.lerp_(gradient**2, 1 - beta2)
                weight -= RATE * moment / (1 - beta1**step) / ((square / (1 - beta2**step)).sqrt() + 1e-8)
            else:
                moment += (gradient**2).mean(1)
                weight -= RATE * gradient / (moment.sqrt().unsqueeze(1) + 1e-8)
    return weight.detach(), {"sgd": [], "adam": [moment, square]}.get(optimizer, [moment])


_EVERYWHERE = ["rowwise_adagrad", "adagrad", "sgd"]


@on_devices(
    "world_size",
    "optimizer",
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
def test_first_rows_do_not_depend_on_the_device():
    config = CatalogueConfig(optimizer="sgd", headroom=0.0)
    found, expected = (run_ranks(1, _train, config, 0, device=device)[0][0] for device in ("cuda", "cpu"))
    assert torch.equal(found, expected)  # whole numbers and powers of two, one product and one rounding


def test_first_rows_do_not_depend_on_the_world_size():
    config = CatalogueConfig(headroom=0.0)
    worlds = [run_ranks(world_size, _train, config, 0)[0][0] for world_size in (1, 2, 4)]
    assert torch.equal(worlds[0], worlds[1])
    assert torch.equal(worlds[0], worlds[2])
    assert worlds[0].std() > 0.1


def _grow(topology, config):
    catalogue, device = Catalogue(config, [ITEMS], DIM, 7, topology), topology.device
    indexed = _gathered(catalogue, catalogue.flushed_weight())[[1, 14, 28]].to(device)
    looked, nothing = catalogue.lookup(_jagged([1, 14, 28], device=device), _jagged([], device=device))
    assert torch.equal(looked, indexed)
    assert not len(nothing)
    looked.square().sum().backward()
    before = {name: _gathered(catalogue, rows.values) for name, rows in catalogue.flushed_state().items()}
    assert not catalogue.grow(catalogue.capacity)
    with patch.object(rows_of_ranks, "EXCHANGED", 100):  # three rows at a time
        grown = catalogue.grow(70)
    after = {name: _gathered(catalogue, rows.values) for name, rows in catalogue.flushed_state().items()}
    drawn = Catalogue(CatalogueConfig(headroom=0.0), [70], DIM, 7, topology)
    rows = range(max(ITEMS, catalogue.rows.start), max(ITEMS, catalogue.rows.stop))
    new = catalogue.flushed_weight()[rows.start - catalogue.rows.start : rows.stop - catalogue.rows.start].clone()
    [looked] = catalogue.lookup(_jagged([1, 69], device=device))  # the grown table trains
    looked.square().sum().backward()
    [expected] = drawn.lookup(_jagged(list(rows), device=device))
    assert torch.equal(new, expected)
    return grown, catalogue.capacity, before, after, catalogue.learning_rate


@on_devices(
    "world_size",
    "sharding",
    "optimizer",
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


def _tables_while_growing(topology):
    """Whether FBGEMM's table of before exists when that of after is made."""
    catalogue, exists = Catalogue(CatalogueConfig(headroom=0.0), [ITEMS], DIM, 7, topology), []
    catalogue.lookup(_jagged([1, 14, 28]))[0].sum().backward()
    (before,), sharded = map(weakref.ref, catalogue._table.kernels), catalogue._sharded

    def counted(capacity):
        exists.append(before() is not None)
        return sharded(capacity)

    with patch.object(catalogue, "_sharded", counted):
        catalogue.grow(70)
    return exists


def test_a_table_is_freed_before_a_larger_one_is_made():
    assert run_ranks(2, _tables_while_growing) == [[False], [False]]


def _placement(topology, items, capacity=None):
    catalogue = Catalogue(CatalogueConfig(headroom=0.5), items, DIM, 0, topology, capacity)
    with patch.object(catalogue._table._module, "state_dict", side_effect=AssertionError("costs a flush")):
        return catalogue.rows, catalogue.capacity, catalogue.shards, catalogue.kernel


def test_headroom_and_shards():
    assert run_ranks(2, _placement, [100]) == [(range(75), 150, 2, "fused"), (range(75, 150), 150, 2, "fused")]


@pytest.mark.parametrize(("capacity", "rows"), [(120, 120), (400, 400), (10, 100)])
def test_a_known_capacity_replaces_the_headroom(capacity, rows):
    bounds = run_ranks(2, _placement, [60, 100], capacity)
    assert [placed for placed, *_ in bounds] == [range(rows // 2), range(rows // 2, rows)]
    assert [total for _, total, *_ in bounds] == [rows, rows]


def _grow_with_copies(topology):
    """A table with two frozen copies, of which one is lost on every rank but not yet collected on rank 0."""
    config = CatalogueConfig(headroom=0.0)
    catalogue = Catalogue(config, [ITEMS], DIM, 7, topology)
    kept, lost = catalogue.frozen_copy(), catalogue.frozen_copy()
    uncollected = lost if topology.rank == 0 else None
    del lost
    catalogue.lookup(_jagged([1, 14, 28]))[0].sum().backward()
    assert not torch.equal(_gathered(catalogue, catalogue.flushed_weight()), _gathered(kept, kept.flushed_weight()))
    catalogue.grow(70)
    copied = _gathered(kept, kept.flushed_weight())
    kept.grow(70)  # harmless, as it has grown with the table
    again = _gathered(kept, kept.flushed_weight())
    first = Catalogue(config, [ITEMS], DIM, 7, topology)
    lost_capacity = uncollected.capacity if uncollected else None
    copies = kept.rows == catalogue.rows, kept.items, kept.capacity, len(catalogue._copies)
    original = _gathered(first, first.flushed_weight())
    del kept
    gc.collect()
    catalogue.grow(100)
    return copies, torch.equal(copied, original), torch.equal(again, original), lost_capacity, len(catalogue._copies)


def test_frozen_copies_grow_with_the_table_while_every_rank_has_them():
    (one, *rest), (other, *others) = run_ranks(2, _grow_with_copies)
    assert one == other == (True, 70, 70, 1)
    assert rest == [True, True, ITEMS, 0]
    assert others == [True, True, None, 0]


def test_adam_on_cpu_is_refused():
    with pytest.raises(ValueError, match=r"catalogue\.optimizer.*rowwise_adagrad"):
        Catalogue(CatalogueConfig(optimizer="adam"), [10], DIM, 0, Topology(0, 1, 1, torch.device("cpu")))


def _update_counts(topology):
    """The kernels' counts after each step, with lookups without gradient between, a restored count and a new table."""
    catalogue, seen = Catalogue(CatalogueConfig(headroom=0.0), [ITEMS], DIM, 7, topology), []
    for steps in (None, None, 40, None):
        catalogue.steps = steps or catalogue.steps
        with torch.no_grad():
            catalogue.lookup(_jagged([1, 2]))
        catalogue.lookup(_jagged([1, 2]))[0].sum().backward()
        kernels = catalogue._table.kernels
        seen.append((catalogue.steps, *(int(count) for kernel in kernels for count in (kernel.iter, kernel.iter_cpu))))
        catalogue.grow(ITEMS + len(seen) // 3)
    return seen


def test_only_updates_are_counted():
    assert run_ranks(2, _update_counts) == [[(count, count, count) for count in (1, 2, 41, 42)]] * 2
