import numpy as np
import pytest
import torch

from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.evaluation import ranking
from dist_imsr.model.interests import Interests
from tests import reference
from tests.ranks import run_ranks

KNOWN, CAPACITY, DIM = 37, 41, 8  # no number of ranks divides them


def _world(seed=0):
    """Users with ragged interests, one of them without any, and their targets."""
    draw = np.random.default_rng(seed)
    catalogue = draw.normal(size=(CAPACITY, DIM)).astype(np.float32)
    catalogue[11] = catalogue[7]  # a tie
    catalogue[CAPACITY - 1] = 100  # beyond the known items: must not count
    users = [
        (draw.normal(size=(count, DIM)).astype(np.float32), draw.integers(KNOWN, size=targets).tolist())
        for count, targets in [(3, 2), (1, 1), (0, 2), (5, 3), (2, 0), (4, 1), (2, 5)]
    ]
    users[1] = (users[1][0], [7])
    return catalogue, users


def _rank(topology, how, tile, most):
    ranking._TILE_SCORES = {"cpu": tile}
    weight, users = _world()
    catalogue = Catalogue(CatalogueConfig(headroom=0.0), CAPACITY, DIM, 0, topology)
    catalogue.weight.copy_(torch.from_numpy(weight[catalogue.rows.start : catalogue.rows.stop]))
    mine = users[topology.rank :: topology.world_size]
    slots = max((len(held) for held, _ in mine), default=0)
    vectors = torch.zeros(len(mine), slots, DIM)
    mask = torch.zeros(len(mine), slots, dtype=torch.bool)
    for row, (held, _) in enumerate(mine):
        vectors[row, : len(held)], mask[row, : len(held)] = torch.from_numpy(held), True
    targets = [(row, target) for row, (_, own) in enumerate(mine) for target in own]
    owners, ids = torch.tensor(targets, dtype=torch.int64).reshape(-1, 2).T
    embeddings = torch.from_numpy(weight)[ids]
    ranks = ranking.target_ranks(
        catalogue, topology, Interests(vectors, mask), ids, owners, embeddings, KNOWN, how, most
    ).split([len(own) for _, own in mine])
    return {row * topology.world_size + topology.rank: own.tolist() for row, own in enumerate(ranks)}


@pytest.mark.parametrize("how", ["attentive", "max"])
@pytest.mark.parametrize(("world_size", "tile"), [(1, 1 << 23), (2, 100), (3, 1 << 23), (4, 60)])
def test_ranks_equal_brute_force(world_size, tile, how):
    catalogue, users = _world()
    found = {}
    for part in run_ranks(world_size, _rank, how, tile, None):
        found |= part
    for user, (interests, targets) in enumerate(users):
        known = catalogue[:KNOWN].astype(np.float64)
        assert found[user] == [reference.rank(interests.astype(np.float64), known, target, how) for target in targets]


@pytest.mark.parametrize("most", [1, 5, 20])
@pytest.mark.parametrize(("world_size", "tile"), [(1, 30), (2, 12), (3, 1 << 23)])
def test_first_places_are_exact_and_others_lie_beyond(world_size, tile, most):
    exact, found = {}, {}
    for ranks, asked in ((exact, None), (found, most)):
        for part in run_ranks(world_size, _rank, "attentive", tile, asked):
            ranks |= part
    assert sum(rank <= most for ranks in exact.values() for rank in ranks) > 0
    for user, ranks in exact.items():
        for rank, one in zip(ranks, found[user], strict=True):
            assert one == rank if rank <= most else most < one <= rank


def test_users_without_interests_tie_everywhere():
    found = run_ranks(1, _rank, "attentive", 1 << 23, None)[0]
    assert found[2] == [(KNOWN + 1) / 2] * 2
