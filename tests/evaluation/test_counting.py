"""Counts of better items against plain comparisons in float64."""

import pytest
import torch

from dist_imsr.evaluation import counting, tiles
from dist_imsr.model.interests import Interests
from dist_imsr.model.scoring import score

USERS, ITEMS, TARGETS = 30, 700, 75  # several targets of some users, none of others


def _slow_count(users, items, how, owners, targets, excluded):
    """Better items and half of those that tie, one target after the other; and each target's score and tie."""
    present = torch.ones(users.shape[:2], dtype=torch.bool)
    scores = score(Interests(users.double(), present), items.double(), how)
    counts, limits = [], []
    for owner, target in zip(owners.tolist(), targets.tolist(), strict=True):
        tie = tiles.TIE * users[owner].double().norm(dim=1).max() * items[target].double().norm()
        others = [i for i in range(len(items)) if i != target and (owner, i) not in excluded]
        above = scores[owner, others] - scores[owner, target]
        counts.append(float((above > tie).sum()) + float((above.abs() <= tie).sum()) / 2)
        limits.append((float(scores[owner, target]), float(tie)))
    return torch.tensor(counts, dtype=torch.float64), torch.tensor(limits)


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("how", ["attentive", "max"])
@pytest.mark.parametrize(("count", "scale"), [(1, 1.0), (4, 0.05), (4, 1.0), (4, 20.0), (7, 3.0)])
def test_counts_equal_plain_comparisons(count, scale, how, precision):
    draw = torch.Generator().manual_seed(count)
    users, items = scale * torch.randn(USERS, count, 12, generator=draw), torch.randn(ITEMS, 12, generator=draw)
    items[ITEMS // 2 : ITEMS // 2 + 40] = items[:40]  # equal scores
    owners = torch.randint(USERS // 2, (TARGETS,), generator=draw)
    targets = torch.randint(60, (TARGETS,), generator=draw)
    pairs = {(int(u), int(i)) for u, i in torch.randint(USERS, (400, 2), generator=draw)}
    excluded = tiles.Pairs(*torch.tensor(sorted(pairs)).T)
    wanted, limits = _slow_count(users, items, how, owners, targets, pairs)
    shard = tiles.Shard(items, 0, how, precision, memory=1 << 18)  # a few tiles
    found = counting.count_better(shard, users, owners, targets, *limits.T.contiguous(), excluded)
    assert found.tolist() == wanted.tolist()


def test_users_with_all_items_excluded_have_no_better_ones():
    users, items = torch.ones(2, 3, 4), torch.ones(5, 4)
    excluded = tiles.Pairs(torch.tensor([0] * 5), torch.arange(5))
    owners, scores = torch.tensor([0, 1]), torch.full((2,), 4.0)
    found = counting.count_better(
        tiles.Shard(items, 0), users, owners, torch.tensor([2, 2]), scores, torch.full((2,), 1e-5), excluded
    )
    assert found.tolist() == [0, 2]
