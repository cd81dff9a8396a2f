import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from dist_imsr.evaluation import tiles

# The interpreter of earlier ones cannot turn NumPy 2.4's arrays of one element into numbers.
pytest.importorskip("triton", None if torch.cuda.is_available() else "3.7", reason="no triton, or an old one")

USERS, ITEMS, TARGETS = 37, 83, 60  # no block divides the first two


def _nothing(device="cpu"):
    return tiles.Pairs(*torch.empty(2, 0, dtype=torch.int64, device=device))


def _case(seed, how, count, dim):
    """A shard, users, some of them with several targets and some with none, and barred pairs."""
    draw = torch.Generator().manual_seed(seed)
    items = torch.randn(ITEMS + 20, dim, generator=draw)
    items[ITEMS // 2 : ITEMS // 2 + 20] = items[:20]  # ties
    users = torch.randn(USERS, count, dim, generator=draw)
    owners = torch.randint(USERS, (TARGETS,), generator=draw)
    wanted = torch.randint(-9, ITEMS + 9, (TARGETS,), generator=draw)  # some are in other shards
    wanted[:25] %= 20
    owners[:9] = 5
    scores = tiles._reduce((users[owners] * items[wanted].unsqueeze(1)).sum(-1), how)
    longest = users.norm(dim=-1).amax(1) if count else torch.zeros(USERS)
    ties = tiles.TIE * longest[owners] * items[wanted].norm(dim=1)
    rows = torch.cat([torch.randint(USERS, (300,), generator=draw), owners[::4], owners[::4]])
    barred = torch.cat([torch.randint(-9, ITEMS + 9, (300,), generator=draw), wanted[::4], wanted[::4]])
    return items[:ITEMS], how, users, owners, wanted, scores, ties, rows, barred


def _counts(counter, device, case, mask, size):
    items, how, users, owners, wanted, scores, ties, *pairs = (
        value.to(device) if isinstance(value, torch.Tensor) else value for value in case
    )
    barred = tiles.Pairs(*pairs) if mask else _nothing(device)
    shard = tiles.Shard(items[:size], 0, how, memory=1 << 16)
    return counter(shard, users, owners, wanted, scores, ties, barred).cpu()


def _both(blocks, seed, how, count, dim, mask, size=ITEMS):
    """What either counter finds."""
    from dist_imsr.evaluation import fused

    fused._USERS, fused._ITEMS, fused._PROGRAMS = blocks
    case, device = _case(seed, how, count, dim), "cuda" if torch.cuda.is_available() else "cpu"
    found = _counts(fused.count_better, device, case, mask, size)
    return found.tolist(), _counts(tiles.count_better, "cpu", case, mask, size).tolist()


@pytest.fixture(scope="module")
def both(device):
    """``_both``; without CUDA in a process of its own, since Triton chooses its interpreter when first imported."""
    if device == "cuda":
        yield _both
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            yield lambda *case: alone.submit(_both, *case).result()


@pytest.mark.parametrize(("dim", "mask"), [(4, True), (8, False), (36, True), (64, True)])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("how", ["attentive", "max"])
def test_counts_equal_those_of_tiles(both, how, count, dim, mask):
    found, wanted = both((16, 16, 8), count + dim, how, count, dim, mask)
    assert found == wanted
    assert any(value % 1 for value in wanted)  # there are ties


@pytest.mark.parametrize("blocks", [(16, 32, 1), (32, 16, 99), (64, 64, 2048)])
@pytest.mark.parametrize("seed", range(3))
def test_blocks_do_not_show(both, blocks, seed):
    found, wanted = both(blocks, seed, "attentive", 3, 16, True)
    assert found == wanted


@pytest.mark.parametrize("size", [0, 1, 16, 17])
def test_small_shards(both, size):
    found, wanted = both((16, 16, 2), 0, "attentive", 4, 8, True, size)
    assert found == wanted
