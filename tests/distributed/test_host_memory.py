"""Tables whose rows live in host memory, behind a cache on the device: no other numbers than on the device alone.

All of them are tiny: managed memory beyond what a device has free can hang it.
"""

from dataclasses import replace

import pytest
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torchrec import JaggedTensor

from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.evaluation.ranking import Ranker, RankingConfig
from dist_imsr.model.interests import Interests
from dist_imsr.model.scoring import score
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.placement import fused, place
from tests.ranks import on_devices, run_ranks

ITEMS, LATER, DIM, DRAWN = 12_000, 15_000, 32, 3000
HELD = CatalogueConfig(optimizer="rowwise_adagrad", headroom=0.0, learning_rate=0.1)
CACHED = replace(HELD, device_memory=1)  # 1.5 MB of rows do not fit, and a fifth of them is less than a batch asks for


@pytest.mark.parametrize("sharding", ["row_wise", "planner"])
@pytest.mark.parametrize(("ranks", "items"), [(1, 12_000), (2, 24_000)])
@pytest.mark.parametrize(("optimizer", "least"), [("rowwise_adagrad", 2), ("adam", 6)])
def test_the_budget_decides_where_rows_and_their_state_live(sharding, ranks, items, optimizer, least):
    kernels = {}
    for budget in (least // 2, least, 100, None):
        catalogue = CatalogueConfig(optimizer, sharding=sharding, device_memory=budget)
        config = PlanConfig(items=items, dim=DIM, gpus_per_node=ranks, gpu="h200", catalogue=catalogue)
        placed = place(config, items)
        kernels[budget] = placed.kernel
        assert fused(placed) == (placed.kernel == "fused")
        assert sum(placed.rows(ranks)) == items
    assert kernels == {least // 2: "fused_uvm_caching", least: "fused", 100: "fused", None: "fused"}
    config.catalogue.device_memory = 1
    assert place(config, 20 * items).kernel == "fused_uvm"  # not even a fifth fits


def test_a_budget_is_no_more_than_the_device_has_and_none_of_the_hosts():
    assert CatalogueConfig().memory_of(5 << 20) == 5 << 20
    assert CatalogueConfig(device_memory=3).memory_of(5 << 20) == 3 << 20
    assert CatalogueConfig(device_memory=7).memory_of(5 << 20) == 5 << 20
    assert CatalogueConfig(device_memory=3).memory_of(None) is None
    with pytest.raises(ValueError, match=r"catalogue\.device_memory"):
        CatalogueConfig(device_memory=0)


def _handed_out(topology):
    """What the table's kernel is asked for when rows and state are handed out."""
    catalogue, asked = Catalogue(HELD, [20], 8, 0, topology), []
    for name in ("flush", "reset_cache_states"):
        setattr(SplitTableBatchedEmbeddingBagsCodegen, name, lambda _, name=name: asked.append(name))
    handed = []
    for hand_out in (lambda: catalogue.weight, lambda: catalogue.state):
        asked.clear()
        hand_out()
        handed.append(list(asked))
    return handed


def test_rows_come_home_and_are_forgotten_before_they_are_handed_out():
    for handed in run_ranks(1, _handed_out)[0]:
        assert handed[:2] == ["flush", "reset_cache_states"]  # the other way round, what was learnt would be lost
        assert handed[-1] == "reset_cache_states"


class _Life:
    """A table, and what every step and every method leaves of it, on the host."""

    def __init__(self, topology, config, items):
        self.topology, self.left, self._number = topology, [], 0
        self.catalogue = Catalogue(config, [items], DIM, 7, topology)
        self.catalogue.set_learning_rate(0.1)

    def leave(self, *tensors):
        self.left += [tensor.detach().cpu() for tensor in tensors]

    def steps(self, count):
        """Each pulls some rows by their own cubes; what is looked up tells what the steps before have left."""
        for _ in range(count):
            self._number += 1
            draw = torch.Generator().manual_seed(self._number)
            # Half of the items come again and again, so that they are cached when others are written.
            items = torch.randint(self.catalogue.items, (DRAWN,), generator=draw)
            items[::2] = torch.randint(300, (DRAWN // 2,), generator=draw)
            mine = items[self.topology.rank :: self.topology.world_size].to(self.topology.device)
            [looked] = self.catalogue.lookup(JaggedTensor(mine, lengths=torch.tensor([len(mine)], device=mine.device)))
            self.leave(looked)
            (looked**3).sum().mul(self.topology.world_size).backward()

    def look(self):
        """Rows by lookup, which goes through the cache, and the same rows as they are handed out."""
        rows = torch.tensor(self.catalogue.rows, device=self.topology.device)
        with torch.no_grad():
            [looked] = self.catalogue.lookup(JaggedTensor(rows, lengths=torch.tensor([len(rows)], device=rows.device)))
        assert torch.equal(looked, self.catalogue.weight)
        self.leave(*(rows.values for rows in self.catalogue.state.values()))


def _live(topology, config):
    """Trains, restores, trains again, copies and grows; returns the kernels and what was left."""
    life = _Life(topology, config, ITEMS)
    catalogue, kernels = life.catalogue, [life.catalogue.kernel]
    life.steps(3)
    copied = {name: rows.copied() for name, rows in catalogue.state.items()}  # as a snapshot
    life.steps(3)
    with torch.no_grad():
        for name, rows in catalogue.state.items():  # as restoring and loading do
            rows.values.copy_(copied[name].values)
    life.look()
    for name, rows in catalogue.state.items():
        assert torch.equal(rows.values, copied[name].values)
    life.steps(3)
    twin = catalogue.frozen_copy()
    assert torch.equal(twin.weight, catalogue.weight)
    life.steps(1)
    before = {name: rows.copied() for name, rows in catalogue.state.items()}
    assert catalogue.grow(LATER)
    kernels.append(catalogue.kernel)
    if topology.world_size == 1:  # else rows change their ranks
        for name, rows in catalogue.state.items():
            assert torch.equal(rows.values[:ITEMS], before[name].values)
    assert twin.grow(LATER)
    life.look()
    life.steps(3)
    life.look()
    return kernels, life.left, catalogue.steps


@on_devices(
    *("world_size", "optimizer"),
    cpu=[(1, "rowwise_adagrad")],
    cuda=[(1, "rowwise_adagrad"), (1, "adagrad"), (1, "sgd"), (1, "adam"), (2, "adagrad")],
)
def test_all_is_as_on_the_device_alone(device, world_size, optimizer):
    items = world_size * ITEMS
    held, cached = (
        run_ranks(world_size, _live_with, items, replace(config, optimizer=optimizer), device=device)
        for config in (HELD, CACHED)
    )
    for (kernels, wanted, steps), (names, found, counted) in zip(held, cached, strict=True):
        assert kernels == ["fused"] * 2
        assert names == ["fused_uvm_caching" if device == "cuda" else "fused"] * 2
        assert counted == steps == (13 if optimizer == "adam" else steps)  # growth included
        for one, other in zip(found, wanted, strict=True):
            # The same kernels on the same numbers, compiled for other memory: a lost update is a thousand times more.
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not torch.equal(held[0][1][0], held[0][1][3])


def _live_with(topology, items, config):
    global ITEMS, LATER
    ITEMS, LATER = items, items * 5 // 4
    return _live(topology, config)


def _outgrow(topology, config, items):
    """A table that grows out of the device."""
    life = _Life(topology, config, items // 4)
    kernels = [life.catalogue.kernel]
    life.steps(3)
    before = life.catalogue.weight.clone()
    life.catalogue.grow(items)
    kernels.append(life.catalogue.kernel)
    assert torch.equal(life.catalogue.weight[: len(before)], before)
    life.steps(3)
    life.look()
    return kernels, life.left


@pytest.mark.cuda
def test_a_table_may_outgrow_the_device():
    ((_, wanted),) = run_ranks(1, _outgrow, HELD, ITEMS, device="cuda")
    ((kernels, found),) = run_ranks(1, _outgrow, CACHED, ITEMS, device="cuda")
    assert kernels == ["fused", "fused_uvm_caching"]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def _rank(topology, config):
    """Ranks of some targets among all items while rows are cached, and by brute force in float64."""
    life, draw = _Life(topology, config, ITEMS), torch.Generator().manual_seed(0)
    life.steps(3)
    device, targets = topology.device, torch.randint(ITEMS, (24,), generator=draw).to(topology.device)
    interests = Interests(torch.randn(24, 3, DIM, generator=draw), torch.rand(24, 3, generator=draw) < 0.8)
    interests = Interests(interests.vectors.to(device), interests.mask.to(device))
    asked = JaggedTensor(targets, lengths=torch.ones(24, dtype=torch.int64, device=device))
    with torch.no_grad():
        [embeddings] = life.catalogue.lookup(asked)
    found = Ranker(life.catalogue, topology, "attentive", RankingConfig()).ranks(interests, asked, embeddings, ITEMS)
    exact = Interests(interests.vectors.double(), interests.mask)
    scores = score(exact, life.catalogue.weight.double(), "attentive")
    own = scores.gather(1, targets.unsqueeze(1))
    return life.catalogue.kernel, found.cpu(), (1 + (scores > own).sum(1)).cpu(), scores.std().item()


@on_devices("config", cpu=[HELD], cuda=[HELD, CACHED])
def test_ranks_are_those_of_all_rows(device, config):
    ((kernel, found, wanted, spread),) = run_ranks(1, _rank, config, device=device)
    assert kernel == ("fused_uvm_caching" if config is CACHED else "fused")
    assert spread > 0
    some = found < ITEMS / 2 + 1  # a user without interests ties with all
    assert some.any()
    # Of 12,000 float32 scores a few lie within a rounding of the target's, and may count as ties.
    torch.testing.assert_close(found[some], wanted[some].double(), rtol=0, atol=3.0)
