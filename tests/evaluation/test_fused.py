import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from dist_imsr.evaluation import counting, tiles
from dist_imsr.evaluation.launches import CANDIDATES, Launch

# The interpreter of earlier versions cannot convert NumPy 2.4's arrays of one element to numbers.
pytest.importorskip("triton", None if torch.cuda.is_available() else "3.7", reason="no triton, or an old one")

USERS, ITEMS, TARGETS = 37, 83, 60  # USERS and ITEMS are not multiples of a block
PRODUCTS = ("ieee", "tf32", "tf32x3", "bf16", "bf16x3")
SMALL = Launch(users=16, items=32, programs=8)


def _no_pairs(device="cpu"):
    return tiles.Pairs(*torch.empty(2, 0, dtype=torch.int64, device=device))


def _case(draw, items, users, how):
    """Arguments of `count_better`: several targets of one user and none of others, and excluded pairs."""
    known, owners = len(items) - 20, torch.randint(len(users), (TARGETS,), generator=draw)
    wanted = torch.randint(-9, known + 9, (TARGETS,), generator=draw)  # some are in other shards
    wanted[:25] %= 20
    owners[:9] = 5
    scores = tiles.reduce_interests((users[owners] * items[wanted].unsqueeze(1)).sum(-1), how)
    longest = users.norm(dim=-1).amax(1) if users.shape[1] else torch.zeros(len(users))
    ties = tiles.TIE * longest[owners] * items[wanted].norm(dim=1)
    rows = torch.cat([torch.randint(len(users), (300,), generator=draw), owners[::4], owners[::4]])
    excluded = torch.cat([torch.randint(-9, known + 9, (300,), generator=draw), wanted[::4], wanted[::4]])
    return items[:known], how, users, owners, wanted, scores, ties, rows, excluded


def _plain(seed, how, count, dim, known=ITEMS):
    """Random vectors, twenty of the items twice."""
    draw = torch.Generator().manual_seed(seed)
    items = torch.randn(known + 20, dim, generator=draw)
    items[known // 2 : known // 2 + 20] = items[:20]
    return _case(draw, items, torch.randn(USERS, count, dim, generator=draw), how)


def _edge(seed, how, count, dim, known=ITEMS):
    """Copies of a few items, each a little longer or shorter: by about the difference at which scores no longer tie.

    Some vectors are zero, and some so short that products underflow in fp32.
    """
    draw = torch.Generator().manual_seed(seed)
    copies = torch.randn(5, dim, generator=draw)[torch.randint(5, (known + 20,), generator=draw)]
    steps = torch.randint(-12, 13, (known + 20, 1), generator=draw) * tiles.TIE / 8
    items = copies * (1 + steps)
    users = torch.randn(USERS, count, dim, generator=draw)
    items[20:24], items[24:26], users[7], users[8] = 0, items[24:26] * 1e-25, 0, users[8] * 1e-20
    return _case(draw, items, users, how)


def _integers(seed, how, count, dim, known=ITEMS):
    """Small integers, whose products are exact in all precisions and often equal."""
    draw = torch.Generator().manual_seed(seed)
    items = torch.randint(-2, 3, (known + 20, dim), generator=draw).float()
    return _case(draw, items, torch.randint(-2, 3, (USERS, count, dim), generator=draw).float(), how)


def _shrunk(seed, how, count, dim):
    """Random vectors of lengths from 1e-6 to 1e6."""
    draw = torch.Generator().manual_seed(seed)
    items, users = torch.randn(ITEMS + 20, dim, generator=draw), torch.randn(USERS, count, dim, generator=draw)
    items *= 10 ** (12 * torch.rand(len(items), 1, generator=draw) - 6)
    users *= 10 ** (8 * torch.rand(USERS, 1, 1, generator=draw) - 6)
    return _case(draw, items, users, how)


def _counts(counter, device, case, mask, size, memory, *launch):
    items, how, users, owners, wanted, scores, ties, *pairs = (
        value.to(device) if isinstance(value, torch.Tensor) else value for value in case
    )
    excluded = tiles.Pairs(*pairs) if mask else _no_pairs(device)
    shard = tiles.Shard(items[:size], 0, how, memory=memory)
    return counter(shard, users, owners, wanted, scores, ties, excluded, *launch).cpu()


def _both(launch, case, mask=True, size=1 << 30, memory=1 << 16):
    """The counts with and without the kernel; a case is a function of this file with its arguments."""
    from dist_imsr.evaluation import fused

    function, *args = case
    case, device = function(*args), "cuda" if torch.cuda.is_available() else "cpu"
    found = _counts(fused.count_better, device, case, mask, size, memory, launch)
    return found.tolist(), _counts(counting.count_better, "cpu", case, mask, size, 1 << 28).tolist()


def _crowded(launch, case, word):
    """Both counts if a word of close pairs takes ``word`` bytes, and the sizes of the chunks that were counted."""
    from dist_imsr.evaluation import fused

    chunks, count = [], fused._Counter.count
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_WORD", word)
        patch.setattr(fused._Counter, "count", lambda self, one: chunks.append(len(one)) or count(self, one))
        return *_both(launch, case), chunks


def _errors(products, how, count, dim):
    """The largest error of a score, relative to its bound."""
    from dist_imsr.evaluation import fused

    draw = torch.Generator().manual_seed(count)
    users, items = torch.randn(64, count, dim, generator=draw), torch.randn(150, dim, generator=draw)
    items[::3] = users[:50, 0] * 1.001 + 1e-4  # almost parallel, which nearly reaches the bound
    owners, levels = torch.arange(64), torch.zeros(64)
    shard = tiles.Shard(items, 0, how)
    targets = fused._sort_targets(owners, owners, levels, levels)
    counter = fused._Counter(shard, users, targets, Launch(products))
    rounded = [
        [part.float() for part in counter._rounded(vectors, len(vectors)).unbind(1)]
        for vectors in (users.flatten(0, 1), items)
    ]
    pairs = [(a, b) for i, a in enumerate(rounded[0]) for j, b in enumerate(rounded[1]) if i + j < 2]
    agreement = sum(a @ b.T for a, b in reversed(pairs)).view(64, count, -1)
    exact = tiles.reduce_interests(users.double() @ items.double().T, how)
    bound = counter.bounds.unsqueeze(1) * items.norm(dim=1)
    return ((tiles.reduce_interests(agreement, how) - exact).abs() / bound).max().item()


@pytest.fixture(scope="module")
def isolated(device):
    """Calls a function; without CUDA in a separate process, since Triton selects its interpreter on import."""
    if device == "cuda":
        yield lambda function, *args: function(*args)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            yield lambda function, *args: process.submit(function, *args).result()


@pytest.mark.parametrize(("dim", "mask"), [(4, True), (8, False), (36, True), (64, True)])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("how", ["attentive", "max"])
def test_counts_equal_those_without_the_kernel(isolated, how, count, dim, mask):
    for products in PRODUCTS:
        found, wanted = isolated(_both, SMALL._replace(products=products), (_plain, count + dim, how, count, dim), mask)
        assert found == wanted, products
        assert any(value % 1 for value in wanted)  # there are ties


@pytest.mark.parametrize("case", [_edge, _integers, _shrunk])
@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("how", ["attentive", "max"])
def test_hard_cases_equal_those_without_the_kernel(isolated, how, products, case):
    for seed, (count, dim) in enumerate([(1, 8), (4, 36), (5, 64)]):
        found, wanted = isolated(_both, SMALL._replace(products=products), (case, seed, how, count, dim))
        assert found == wanted, (count, dim)


@pytest.mark.parametrize("blocks", [(16, 32, 16, 1), (32, 64, 32, 99), (64, 64, 64, 2048)])
@pytest.mark.parametrize("seed", range(3))
def test_counts_do_not_depend_on_blocks(isolated, blocks, seed):
    users, items, dims, programs = blocks
    launch = Launch(users=users, items=items, dims=dims, programs=programs)
    found, wanted = isolated(_both, launch, (_plain, seed, "attentive", 3, 48))
    assert found == wanted


@pytest.mark.parametrize("size", [0, 1, 16, 33])
def test_small_shards(isolated, size):
    found, wanted = isolated(_both, SMALL, (_plain, 0, "attentive", 4, 8), True, size)
    assert found == wanted


def test_a_full_list_of_pairs_is_counted_again_in_smaller_chunks(isolated):
    case = _edge, 0, "attentive", 4, 8
    found, wanted, chunks = isolated(_crowded, SMALL, case, 1 << 4)
    assert (found, chunks) == (wanted, [ITEMS])
    found, wanted, chunks = isolated(_crowded, SMALL, case, 1 << 30)  # room for one word per target
    assert found == wanted
    assert chunks[0] == ITEMS
    assert len(chunks) > 2
    assert sum(chunks) > ITEMS


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("how", ["attentive", "max"])
def test_errors_of_scores_are_within_the_bound(isolated, how, products):
    for count in (1, 2, 5, 12):
        worst = isolated(_errors, products, how, count, 64)
        assert worst <= 1
        if len(products) == 4 and products != "ieee":  # one rounded product: the bound is not loose
            assert worst > 0.02


@pytest.mark.cuda
@pytest.mark.parametrize("name", CANDIDATES)
@pytest.mark.parametrize(("case", "how"), [(_plain, "attentive"), (_edge, "attentive"), (_plain, "max")])
def test_large_shards_on_a_device(name, case, how):
    found, wanted = _both(CANDIDATES[name], (case, 0, how, 4, 64, 100_000), memory=1 << 26)
    assert found == wanted
