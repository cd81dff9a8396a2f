from unittest.mock import patch

import numpy as np
import pytest
import torch
from torchrec import JaggedTensor

from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.evaluation import counting, ranking, tiles
from dist_imsr.evaluation.ranking import Ranker, RankingConfig
from dist_imsr.evaluation.seen import SeenItems
from dist_imsr.model.interests import Interests
from dist_imsr.model.scoring import Scoring
from tests import reference
from tests.devices import on
from tests.ranks import on_devices, run_ranks

KNOWN, CAPACITY, DIM, TOP = 37, 41, 8, 6  # not multiples of any number of ranks


def _world(seed=0):
    """Users with ragged interests, one without any, their targets, and their seen items."""
    draw = np.random.default_rng(seed)
    catalogue = draw.normal(size=(CAPACITY, DIM)).astype(np.float32)
    catalogue[11] = catalogue[7]  # a tie
    catalogue[CAPACITY - 1] = 100  # not a known item: must not count
    users = [
        (draw.normal(size=(count, DIM)).astype(np.float32), draw.integers(KNOWN, size=targets).tolist())
        for count, targets in [(3, 2), (1, 1), (0, 2), (5, 3), (2, 0), (4, 1), (2, 5), (2, 1), (3, 1)]
    ]
    users[1] = (users[1][0], [7])
    seen = [draw.choice(KNOWN, size=draw.integers(9), replace=False).tolist() for _ in users]
    seen[5] = [*seen[5], users[5][1][0]]
    seen[1] = [7, 11]  # a met target, and another met item that ties with it
    seen[6] = [item for item in seen[6] if item not in users[6][1]] + users[6][1][:3]
    seen = [sorted(set(own)) for own in seen]
    return catalogue, users, seen


def _ranker(topology, how, tile, precision):
    tiles._CACHED, tiles._COLUMNS, ranking._FIRST_CHUNK = tile, 7, 2
    catalogue = Catalogue(CatalogueConfig(headroom=0.0), [CAPACITY], DIM, 0, topology)
    catalogue.flushed_weight().copy_(torch.from_numpy(_world()[0][catalogue.rows.start : catalogue.rows.stop]))
    return Ranker(catalogue, topology, Scoring(how), RankingConfig(precision))


def _jagged(lists, device):
    values = torch.tensor([value for own in lists for value in own], dtype=torch.int64, device=device)
    return JaggedTensor(values, lengths=torch.tensor([len(own) for own in lists], device=device))


def _mine(topology):
    """Interests, targets and seen items of this rank's users, which are dealt round-robin."""
    _, users, seen = _world()
    mine, seen = users[topology.rank :: topology.world_size], seen[topology.rank :: topology.world_size]
    slots = max((len(vectors) for vectors, _ in mine), default=0)
    padded, mask = torch.zeros(len(mine), slots, DIM), torch.zeros(len(mine), slots, dtype=torch.bool)
    for row, (vectors, _) in enumerate(mine):
        padded[row, : len(vectors)], mask[row, : len(vectors)] = torch.from_numpy(vectors), True
    return on(topology.device, Interests(padded, mask)), [own for _, own in mine], seen


def _rank(topology, how, tile, precision, exact_top, mask):
    """The ranks among all items and, with ``mask``, among unseen ones, of the targets of each user."""
    interests, targets, seen = _mine(topology)
    sequences, seen = _jagged(targets, topology.device), _jagged(seen, topology.device)
    table = torch.from_numpy(_world()[0]).to(topology.device)
    met = SeenItems(seen, table[seen.values()]) if mask else None
    found = _ranker(topology, how, tile, precision).ranks(
        interests, sequences, table[sequences.values()], KNOWN, exact_top, met
    )
    assert mask == (found.unseen is not None)
    each = [ranks.cpu().split([len(own) for own in targets]) for ranks in found if ranks is not None]
    return {
        row * topology.world_size + topology.rank: [ranks[row].tolist() for ranks in each]
        for row in range(len(targets))
    }


def _best(topology, how, tile, precision, top, mask):
    interests, _, seen = _mine(topology)
    excluded = _jagged(seen, topology.device) if mask else None
    scores, ids = (one.cpu() for one in _ranker(topology, how, tile, precision).best(interests, KNOWN, top, excluded))
    return {row * topology.world_size + topology.rank: each for row, each in enumerate(zip(scores, ids, strict=True))}


def _gathered(world_size, function, *args, device="cpu"):
    found = {}
    for part in run_ranks(world_size, function, *args, device=device):
        found |= part
    return found


CASES = on_devices(
    "world_size",
    "tile",
    "how",
    "precision",
    "mask",
    cpu=[
        (1, 1 << 23, "attentive", "fp32", False),
        (1, 1 << 23, "max", "bf16", True),
        (2, 100, "attentive", "bf16", True),
        (2, 60, "max", "fp32", False),
        (3, 1 << 23, "attentive", "fp32", True),
        (3, 80, "attentive", "bf16", False),
        (4, 60, "attentive", "fp32", True),
        (4, 1 << 23, "max", "fp32", True),
    ],
    cuda=[
        (1, 1 << 23, "attentive", "fp32", False),
        (1, 100, "attentive", "fp32", True),
        (1, 1 << 23, "max", "fp32", True),
        (1, 1 << 23, "attentive", "bf16", True),
        (1, 1 << 23, "max", "bf16", False),
        (2, 1 << 23, "attentive", "fp32", True),
    ],
)


@CASES
@pytest.mark.parametrize("dense", [0.0, 1.0])
def test_ranks_equal_brute_force(device, world_size, tile, how, precision, mask, dense):
    catalogue, users, seen = _world()
    found = _gathered(world_size, _with_dense, dense, _rank, how, tile, precision, None, mask, device=device)
    for user, (interests, targets) in enumerate(users):
        known = catalogue[:KNOWN].astype(np.float64)
        for ranks, excluded in zip(found[user], ([], seen[user]), strict=False):
            assert ranks == [
                reference.rank(interests.astype(np.float64), known, item, how, excluded) for item in targets
            ]


def _with_bonuses(topology, tile, exact_top):
    """The ranks with each of three bonuses, from one pass and from one pass each."""
    interests, targets, seen = _mine(topology)
    sequences, seen = _jagged(targets, topology.device), _jagged(seen, topology.device)
    table, count = torch.from_numpy(_world()[0]).to(topology.device), torch.arange(len(seen.values())) % 3
    bonuses = (None, 0.3 * count.double(), 40.0 * count.double())
    each = [SeenItems(seen, table[seen.values()], bonus) for bonus in bonuses]
    ranker = _ranker(topology, "attentive", tile, "fp32")
    users = interests, sequences, table[sequences.values()], KNOWN, exact_top
    apart, together = [ranker.ranks(*users, one) for one in each], ranker.ranks_of_each(*users, each[0], bonuses)
    return [[ranks.tolist() for ranks in one] for one in apart], [[ranks.tolist() for ranks in one] for one in together]


@pytest.mark.parametrize(("world_size", "tile", "exact_top"), [(1, 30, None), (2, 12, 3), (3, 1 << 23, 20)])
def test_one_pass_serves_several_bonuses(world_size, tile, exact_top):
    results = run_ranks(world_size, _with_bonuses, tile, exact_top)
    assert all(apart == together for apart, together in results)
    assert any(apart[0] != apart[2] for apart, _ in results)


def _with_dense(topology, dense, function, *args):
    with patch.object(tiles, "_DENSE", dense):
        return function(topology, *args)


@CASES
def test_best_items_equal_brute_force(device, world_size, tile, how, precision, mask):
    catalogue, users, seen = _world()
    found = _gathered(world_size, _best, how, tile, precision, TOP, mask, device=device)
    for user, (interests, _) in enumerate(users):
        scores = np.array([reference.score(interests.astype(np.float64), item, how) for item in catalogue[:KNOWN]])
        scores[seen[user] if mask else []] = -np.inf
        wanted = np.lexsort((np.arange(KNOWN), -scores))[:TOP]
        assert found[user][1].tolist() == wanted.tolist()
        np.testing.assert_allclose(found[user][0], scores[wanted], rtol=1e-5, atol=1e-5)


def _in_host_memory(topology, function, *args):
    """Calls a function while the table seems to be in host memory; no kernel may get more rows than two."""
    lengths, real = [], ranking.group_by_num_interests

    def recorded(block, active, shard):
        lengths.append(len(shard.weight))
        return real(block, active, shard)

    table = patch.object(Catalogue, "in_host_memory", True)
    with table, patch.multiple(ranking, _COPIED=8 * DIM, group_by_num_interests=recorded):
        found = function(topology, *args)
    assert max(lengths) == 2
    return found


@pytest.mark.parametrize("exact_top", [None, 5])
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_table_in_host_memory_is_ranked_part_by_part(world_size, exact_top):
    for function, last in ((_rank, exact_top), (_best, TOP)):
        args = function, "attentive", 30, "fp32", last, True
        found = _gathered(world_size, _in_host_memory, *args)
        wanted = _gathered(world_size, *args)
        for user, one in wanted.items():
            for a, b in zip(found[user], one, strict=True):
                torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-6, atol=1e-6)


def test_top_n_with_fewer_items():
    scores, ids = _gathered(3, _best, "attentive", 50, "fp32", KNOWN + 5, True)[0]
    available = KNOWN - len(_world()[2][0])
    assert sorted(ids[:available].tolist()) == sorted(set(range(KNOWN)) - set(_world()[2][0]))
    assert (ids[available:] == -1).all()
    assert (scores[available:] == -torch.inf).all()


@pytest.mark.parametrize("exact_top", [1, 5, 20])
@pytest.mark.parametrize(("world_size", "tile"), [(1, 30), (2, 12), (3, 1 << 23)])
def test_ranks_up_to_exact_top_are_exact(world_size, tile, exact_top):
    exact, found = (_gathered(world_size, _rank, "attentive", tile, "fp32", top, False) for top in (None, exact_top))
    assert sum(rank <= exact_top for (ranks,) in exact.values() for rank in ranks) > 0
    for user, (ranks,) in exact.items():
        for rank, one in zip(ranks, found[user][0], strict=True):
            assert one == rank if rank <= exact_top else exact_top < one <= rank


def test_all_items_tie_for_users_without_interests():
    assert run_ranks(1, _rank, "attentive", 1 << 23, "fp32", None, False)[0][2][0] == [(KNOWN + 1) / 2] * 2


def test_a_recommended_item_is_a_hit():
    best = _gathered(2, _best, "attentive", 100, "fp32", TOP, True)
    ranks = _gathered(2, _rank, "attentive", 100, "fp32", TOP, True)
    for user, (interests, targets) in enumerate(_world()[1]):
        if len(interests):
            for rank, target in zip(ranks[user][1], targets, strict=True):
                assert (rank <= TOP) == (target in best[user][1].tolist())


@pytest.mark.parametrize("scale", [1e-3, 0.3, 3.0])
def test_counts_are_within_the_error_bounds(scale):
    draw = torch.Generator().manual_seed(0)
    for count in range(1, 12):
        users = scale * torch.randn(64, count, 16, generator=draw)
        items = torch.randn(500, 16, generator=draw)
        owners, targets = torch.arange(64), torch.randint(500, (64,), generator=draw)
        no_pairs = tiles.Pairs(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
        all_scores = tiles.reduce_interests(users @ items.T, "attentive")
        wanted = all_scores[owners, targets]
        ties = torch.full((64,), 1e-6 * scale)
        higher = (all_scores > (wanted + ties).unsqueeze(1)).sum(1)
        for precision in ("fp32", "bf16"):
            shard = tiles.Shard(items, 0, "attentive", precision)
            found = counting.count_better(shard, users, owners, targets, wanted, ties, no_pairs)
            torch.testing.assert_close(found, higher.double(), rtol=0, atol=1.0)


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match=r"ranking\.memory"):
        RankingConfig(memory=0)
