"""Tables with rows in host memory, behind a cache on the device, compute what tables in device memory compute.

All of them are tiny: managed memory beyond a device's free memory can hang it.
"""

from dataclasses import replace

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torchrec import JaggedTensor

from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.evaluation.ranking import Ranker, RankingConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.interests import Interests
from dist_imsr.model.scoring import Scoring, score
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.placement import fused, place
from tests.ranks import on_devices, run_ranks

ITEMS, LATER, DIM, DRAWN = 12_000, 15_000, 32, 3000
MODEL = ModelConfig(dim=DIM, item_bias=False)
ON_DEVICE = CatalogueConfig(optimizer="rowwise_adagrad", headroom=0.0, learning_rate=0.1)
CACHED = replace(ON_DEVICE, device_memory=1)  # 1.5 MB of rows do not fit; the cache is smaller than a batch
CACHING, UNCACHED = "fused_uvm_caching", "fused_uvm"
# Ranks, optimizer, MiB of device memory, and the kernels before and after growth from ITEMS to LATER items. Adagrad's
# state is as large as the rows and Adam's twice as large, so that a fifth of rows and state soon exceeds 85 % of 1 MiB.
KERNELS = [
    (1, "rowwise_adagrad", 1, [CACHING, CACHING]),
    (1, "adagrad", 1, [CACHING, UNCACHED]),
    (1, "adagrad", 2, [CACHING, CACHING]),
    (1, "sgd", 1, [CACHING, CACHING]),
    (1, "adam", 1, [UNCACHED, UNCACHED]),
    (1, "adam", 2, [CACHING, CACHING]),
    (2, "adagrad", 2, [CACHING, CACHING]),
]


@pytest.mark.parametrize("sharding", ["row_wise", "planner"])
@pytest.mark.parametrize(("ranks", "items"), [(1, 12_000), (2, 24_000)])
@pytest.mark.parametrize(("optimizer", "least"), [("rowwise_adagrad", 2), ("adam", 6)])
def test_device_memory_decides_where_rows_and_their_state_live(sharding, ranks, items, optimizer, least):
    kernels = {}
    for budget in (least // 2, least, 100, None):
        catalogue = CatalogueConfig(optimizer, sharding=sharding, device_memory=budget)
        config = PlanConfig(items=items, model=MODEL, gpus_per_node=ranks, gpu="h200", catalogue=catalogue)
        placed = place(config, items)
        kernels[budget] = placed.kernel
        assert fused(placed) == (placed.kernel == "fused")
        assert sum(placed.rows(ranks)) == items
    assert kernels == {least // 2: "fused_uvm_caching", least: "fused", 100: "fused", None: "fused"}
    config.catalogue.device_memory = 1
    assert place(config, 20 * items).kernel == "fused_uvm"  # not even a fifth fits


@pytest.mark.parametrize(("ranks", "optimizer", "budget", "kernels"), KERNELS)
def test_a_fifth_of_rows_and_state_is_cached_where_it_fits(ranks, optimizer, budget, kernels):
    catalogue = replace(CACHED, optimizer=optimizer, device_memory=budget)
    config = PlanConfig(items=ranks * ITEMS, model=MODEL, gpus_per_node=ranks, gpu="h200", catalogue=catalogue)
    assert [place(config, ranks * items).kernel for items in (ITEMS, LATER)] == kernels


def test_the_planner_gets_no_more_memory_than_the_device_has_and_no_limit_on_the_host():
    assert CatalogueConfig().planner_memory(5 << 20) == 5 << 20
    assert CatalogueConfig(device_memory=3).planner_memory(5 << 20) == 3 << 20
    assert CatalogueConfig(device_memory=7).planner_memory(5 << 20) == 5 << 20
    assert CatalogueConfig(device_memory=3).planner_memory(None, 1, 1) is None
    assert CatalogueConfig().planner_memory(5 << 20, alongside=2 << 20, copies=2) == 1 << 20
    assert CatalogueConfig(device_memory=3).planner_memory(5 << 20, alongside=1 << 20) == 3 << 20
    assert CatalogueConfig().planner_memory(1 << 20, alongside=2 << 20) == 1 << 17
    with pytest.raises(ValueError, match=r"catalogue\.device_memory"):
        CatalogueConfig(device_memory=0)


def _cache_calls(topology):
    """The calls of the kernel's cache for the rows, for the state, and for what is known without them."""
    catalogue, calls = Catalogue(ON_DEVICE, [20], 8, 0, topology), []
    for name in ("flush", "reset_cache_states"):
        setattr(SplitTableBatchedEmbeddingBagsCodegen, name, lambda _, name=name: calls.append(name))
    seen = []
    for read in (catalogue.flushed_weight, catalogue.flushed_state, lambda: (catalogue.rows, catalogue.capacity)):
        calls.clear()
        read()
        seen.append(list(calls))
    return seen


def test_the_cache_is_written_back_and_then_emptied_before_rows_are_read():
    *flushed, bounds = run_ranks(1, _cache_calls, fresh=True)[0]
    for calls in flushed:
        assert calls[:2] == ["flush", "reset_cache_states"]  # the other way round, updates would be lost
        assert calls[-1] == "reset_cache_states"
    assert bounds == []


class _Recorded:
    """A table, and a record on the host of what it computes and holds."""

    def __init__(self, topology, config, items):
        self.topology, self.record, self._number = topology, [], 0
        self.catalogue = Catalogue(config, [items], DIM, 7, topology)
        self.catalogue.set_learning_rate(0.1)

    def add(self, *tensors):
        self.record += [tensor.detach().cpu() for tensor in tensors]

    def steps(self, count):
        """Takes steps of a loss that is the sum of the cubes of some rows, and records the rows."""
        for _ in range(count):
            self._number += 1
            draw = torch.Generator().manual_seed(self._number)
            # Half of the items are the same 300 in every step, so that they are cached while others are written.
            items = torch.randint(self.catalogue.items, (DRAWN,), generator=draw)
            items[::2] = torch.randint(300, (DRAWN // 2,), generator=draw)
            mine = items[self.topology.rank :: self.topology.world_size].to(self.topology.device)
            [looked] = self.catalogue.lookup(JaggedTensor(mine, lengths=torch.tensor([len(mine)], device=mine.device)))
            self.add(looked)
            (looked**3).sum().mul(self.topology.world_size).backward()

    def compare(self):
        """Compares rows from lookups, which go through the cache, with the flushed rows, and records the state."""
        rows = torch.tensor(self.catalogue.rows, device=self.topology.device)
        with torch.no_grad():
            [looked] = self.catalogue.lookup(JaggedTensor(rows, lengths=torch.tensor([len(rows)], device=rows.device)))
        assert torch.equal(looked, self.catalogue.flushed_weight())
        self.add(*(rows.values for rows in self.catalogue.flushed_state().values()))


def _train(topology, config):
    """Trains, restores, trains again, copies and grows; returns the kernels, the record and the number of updates."""
    table = _Recorded(topology, config, ITEMS)
    catalogue, kernels = table.catalogue, [table.catalogue.kernel]
    table.steps(3)
    copied = {name: rows.values.clone() for name, rows in catalogue.flushed_state().items()}
    table.steps(3)
    with torch.no_grad():
        for name, rows in catalogue.flushed_state().items():  # as restoring and loading do
            rows.values.copy_(copied[name])
    table.compare()
    for name, rows in catalogue.flushed_state().items():
        assert torch.equal(rows.values, copied[name])
    table.steps(3)
    frozen = catalogue.frozen_copy()
    assert torch.equal(frozen.flushed_weight(), catalogue.flushed_weight())
    table.steps(1)
    before = {name: rows.values.clone() for name, rows in catalogue.flushed_state().items()}
    assert catalogue.grow(LATER)
    kernels.append(catalogue.kernel)
    if topology.world_size == 1:  # else rows change their ranks
        for name, rows in catalogue.flushed_state().items():
            assert torch.equal(rows.values[:ITEMS], before[name])
    assert frozen.capacity == LATER  # it grows with the table
    assert frozen.rows == catalogue.rows
    table.compare()
    table.steps(3)
    table.compare()
    return kernels, table.record, catalogue.steps


@on_devices(
    "world_size",
    "optimizer",
    "budget",
    "kernels",
    cpu=[(1, "rowwise_adagrad", 1, ["fused", "fused"])],
    cuda=KERNELS,
)
def test_rows_in_host_memory_train_as_rows_on_the_device(device, world_size, optimizer, budget, kernels):
    items = world_size * ITEMS
    on_device, on_host = (
        run_ranks(world_size, _train_items, items, replace(config, optimizer=optimizer), device=device)
        for config in (ON_DEVICE, replace(CACHED, device_memory=budget))
    )
    for (kernels_on_device, expected, steps), (placed, found, counted) in zip(on_device, on_host, strict=True):
        assert kernels_on_device == ["fused"] * 2
        assert placed == kernels
        assert counted == steps == (13 if optimizer == "adam" else steps)  # growth included
        for one, other in zip(found, expected, strict=True):
            # The same kernels on the same numbers, compiled for other memory; a lost update weighs far more.
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not torch.equal(on_device[0][1][0], on_device[0][1][3])


def _train_items(topology, items, config):
    global ITEMS, LATER
    ITEMS, LATER = items, items * 5 // 4
    return _train(topology, config)


def _outgrow(topology, config, items):
    """A table that grows out of the device."""
    table = _Recorded(topology, config, items // 4)
    kernels = [table.catalogue.kernel]
    table.steps(3)
    before = table.catalogue.flushed_weight().clone()
    table.catalogue.grow(items)
    kernels.append(table.catalogue.kernel)
    assert torch.equal(table.catalogue.flushed_weight()[: len(before)], before)
    table.steps(3)
    table.compare()
    return kernels, table.record


@pytest.mark.cuda
def test_a_table_may_outgrow_the_device():
    ((_, expected),) = run_ranks(1, _outgrow, ON_DEVICE, ITEMS, device="cuda")
    ((kernels, found),) = run_ranks(1, _outgrow, CACHED, ITEMS, device="cuda")
    assert kernels == ["fused", CACHING]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def _rank(topology, config):
    """Ranks of some targets among all items while rows are cached, and exact ranks in float64."""
    table, draw = _Recorded(topology, config, ITEMS), torch.Generator().manual_seed(0)
    table.steps(3)
    device, targets = topology.device, torch.randint(ITEMS, (24,), generator=draw).to(topology.device)
    interests = Interests(torch.randn(24, 3, DIM, generator=draw), torch.rand(24, 3, generator=draw) < 0.8)
    interests = Interests(interests.vectors.to(device), interests.mask.to(device))
    ids = JaggedTensor(targets, lengths=torch.ones(24, dtype=torch.int64, device=device))
    with torch.no_grad():
        [embeddings] = table.catalogue.lookup(ids)
    found = (
        Ranker(table.catalogue, topology, Scoring(), RankingConfig()).ranks(interests, ids, embeddings, ITEMS).all_items
    )
    exact = Interests(interests.vectors.double(), interests.mask)
    scores = score(exact, table.catalogue.flushed_weight().double(), "attentive")
    own = scores.gather(1, targets.unsqueeze(1))
    return table.catalogue.kernel, found.cpu(), (1 + (scores > own).sum(1)).cpu(), scores.std().item()


@on_devices("config", cpu=[ON_DEVICE], cuda=[ON_DEVICE, CACHED])
def test_ranking_uses_all_rows(device, config):
    ((kernel, found, expected, spread),) = run_ranks(1, _rank, config, device=device)
    assert kernel == (CACHING if config is CACHED else "fused")
    assert spread > 0
    some = found < ITEMS / 2 + 1  # a user without interests ties with all
    assert some.any()
    # Of 12,000 float32 scores a few lie within a rounding of the target's, and may count as ties.
    torch.testing.assert_close(found[some], expected[some].double(), rtol=0, atol=3.0)
