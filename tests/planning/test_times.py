import pytest
import torch
import torch.distributed as dist

from dist_imsr.data.batch import Batch
from dist_imsr.data.jagged import jagged
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.distributed.interest_store import InterestStoreConfig
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.times import links_of
from dist_imsr.strategies.step_memory import Step
from tests.ranks import run_ranks

ITEMS, DIM, USERS, HISTORY, TARGETS, NEGATIVES = 5000, 16, 20, 7, 3, 200


def _sent(topology):
    """Bytes that this rank sends to the other in each all-to-all of one step."""
    model = Recommender(
        model=ModelConfig(dim=DIM),
        catalogue=CatalogueConfig(headroom=0.0),
        store=InterestStoreConfig(),
        engine=EngineConfig(),
        items=[ITEMS],
        n_buckets=2,
        users_per_bucket=USERS,
        seed=0,
        topology=topology,
    )
    model.store.expand(torch.arange(USERS), 4, span=0)
    draw = torch.Generator().manual_seed(topology.rank)
    history, targets, negatives = (
        jagged(torch.randint(ITEMS, (users * length,), generator=draw).numpy(), [length] * users)
        for users, length in ((USERS, HISTORY), (USERS, TARGETS), (1, NEGATIVES))
    )
    users = model.store.owned.users(torch.arange(USERS))
    all_to_all, sent = dist.all_to_all_single, []

    def counted(output, input, output_split_sizes=None, input_split_sizes=None, **rest):
        parts = input.split(input_split_sizes or [len(input) // topology.world_size] * topology.world_size)
        sent.append((input.numel() - parts[topology.rank].numel()) * input.element_size())
        return all_to_all(output, input, output_split_sizes, input_split_sizes, **rest)

    dist.all_to_all_single = counted
    model.engine.train(True)
    model.train_step(Batch(0, users, history, targets, negatives, 2 * USERS * TARGETS))
    dist.all_to_all_single = all_to_all
    return sent


def test_all_to_alls_carry_the_predicted_bytes():
    ranks = run_ranks(2, _sent)
    config = PlanConfig(ITEMS, 2 * USERS, dim=DIM, gpus_per_node=2, gpu="cpu")
    step = Step(USERS, USERS * HISTORY, USERS * TARGETS, HISTORY, TARGETS, NEGATIVES, 4)
    links = links_of(config, step, weights=DIM * DIM)
    names = "sizes and lengths", "item ids", "embeddings", "their gradients"
    sizes, lengths, ids, forward, backward = (sum(each) / 2 for each in zip(*ranks, strict=True))
    for name, seen in zip(names, (sizes + lengths, ids, forward, backward), strict=True):
        assert links[name].intra == pytest.approx(seen, rel=0.05), name
        assert links[name].inter == 0


def test_links_are_shared_between_and_inside_machines():
    step = Step(8, 80, 20, 10, 3, 100, 4)
    inside, both, across = (
        links_of(PlanConfig(nodes=nodes, gpus_per_node=each), step, weights=4096)
        for nodes, each in ((1, 8), (2, 4), (8, 1))
    )
    alone = links_of(PlanConfig(), step, weights=4096)
    for name in inside:
        assert sum(alone[name][:2]) == 0
        whole = sum(inside[name][:2])
        assert sum(both[name][:2]) == pytest.approx(whole)
        assert sum(across[name][:2]) == pytest.approx(whole)
        assert inside[name].inter == 0 == across[name].intra
        assert 0 < both[name].inter < whole
