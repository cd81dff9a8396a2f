"""The CUDA twin of ``tiles.count_better``: products, scores and comparisons in one kernel, no score in memory.

Products are IEEE fp32 whatever a shard's precision says, so the answer is that of fp32. It may differ from the twin's
where a score lies within rounding of the very edge of a tie.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dist_imsr.evaluation import tiles

_USERS, _ITEMS, _DIMS = 64, 64, 32  # of a program's tile, and how many dimensions it multiplies at a time
_WARPS = 8
_PROGRAMS = 2048  # about; so many that the last ones to end leave little of the device idle


class _Asked(NamedTuple):
    """Targets in the order of their users, and those users from the one with the most targets to the one with fewest.

    A block of users takes as many turns as its first one has targets, so users alike in that share a block.
    """

    order: torch.Tensor  # [A], each one's place among the targets that were given
    users: torch.Tensor  # [b], each one's place among the users that were given
    counts: torch.Tensor  # [b], the targets of each user
    first: torch.Tensor  # [b], where they begin
    low: torch.Tensor  # [A] float32, what ties at least
    high: torch.Tensor  # [A] float32, what ties at the most
    own: torch.Tensor  # [A] int32, each target's own place in the shard; -1 where it is in another


def count_better(
    shard: tiles.Shard,
    users: torch.Tensor,
    owners: torch.Tensor,
    items: torch.Tensor,
    scores: torch.Tensor,
    ties: torch.Tensor,
    barred: tiles.Pairs,
) -> torch.Tensor:
    """How many of a shard's items beat each target; a tie counts as half.

    Args:
        shard: the items; their number is below 2^30.
        users: ``[B, K, d]`` float32, interests of users who all have K of them.
        owners: ``[A]`` int64, each target's place among the users.
        items: ``[A]`` int64, the targets' places in the shard, maybe outside of it.
        scores: ``[A]``, the targets' scores.
        ties: ``[A]``, how close a score must be to tie.
        barred: items that do not count for a user.

    Returns:
        ``[A]`` float64.
    """
    better = torch.zeros(len(owners), dtype=torch.float64, device=users.device)
    if not len(owners) or not len(shard.weight):
        return better
    asked = _arrange(len(shard.weight), owners, items, scores, ties)
    vectors = users[asked.users] if users.shape[1] else users.new_zeros(len(asked.users), 1, users.shape[2])
    twice = torch.zeros(len(owners), dtype=torch.int32, device=users.device)
    _launch(shard, vectors, asked, twice)
    _take_back(shard, vectors, asked, len(users), barred, twice)
    return better.index_copy_(0, asked.order, twice.double() / 2)


def _arrange(size: int, owners: torch.Tensor, items: torch.Tensor, scores: torch.Tensor, ties: torch.Tensor) -> _Asked:
    """Sorts the targets by their users."""
    users, rows, counts = owners.unique(return_inverse=True, return_counts=True)
    counts, kept = counts.sort(descending=True)
    order = kept.argsort()[rows].argsort()
    own = torch.where((items >= 0) & (items < size), items, -1).int()
    first = counts.cumsum(0) - counts
    low, high = (scores - ties).float(), (scores + ties).float()
    return _Asked(order, users[kept], counts, first, low[order], high[order], own[order])


def _launch(shard: tiles.Shard, vectors: torch.Tensor, asked: _Asked, twice: torch.Tensor) -> None:
    """Adds to ``twice`` ``[A]`` 2 for each item above a target and 1 for each that ties."""
    users, count, dim = vectors.shape
    blocks, stretches = triton.cdiv(users, _USERS), triton.cdiv(len(shard.weight), _ITEMS)
    turns = triton.cdiv(stretches, max(1, _PROGRAMS // blocks))
    _count[blocks, triton.cdiv(stretches, turns)](
        vectors.contiguous(),
        shard.weight.contiguous(),
        *asked[2:],
        twice,
        users,
        len(shard.weight),
        count,
        turns,
        dim=dim,
        attentive=shard.how == "attentive",
        block_users=_USERS,
        block_items=_ITEMS,
        block_dims=min(_DIMS, max(16, triton.next_power_of_2(dim))),
        num_warps=_WARPS,
    )


# Compiled once for all sizes but the dimension: sizes change from call to call.
@triton.jit(do_not_specialize=["users", "items", "interests", "turns"])
def _count(
    vectors: tl.tensor,  # [users, interests, dim]
    weight: tl.tensor,  # [items, dim]
    counts: tl.tensor,
    first: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    own: tl.tensor,
    twice: tl.tensor,
    users: tl.tensor,
    items: tl.tensor,
    interests: tl.tensor,
    turns: tl.tensor,
    dim: tl.constexpr,
    attentive: tl.constexpr,
    block_users: tl.constexpr,
    block_items: tl.constexpr,
    block_dims: tl.constexpr,
) -> None:
    """A block of users against ``turns`` tiles of items."""
    user = tl.program_id(0) * block_users + tl.arange(0, block_users)
    real = user < users
    count = tl.load(counts + user, mask=real, other=0)
    start = tl.load(first + user, mask=real, other=0)
    most = tl.load(counts + tl.program_id(0) * block_users)  # users with fewer targets come later
    rows = user.to(tl.int64) * interests
    begin = tl.program_id(1) * turns * block_items
    for edge in range(begin, tl.minimum(begin + turns * block_items, items), block_items):
        item = edge + tl.arange(0, block_items)
        columns = item.to(tl.int64) * dim
        best = tl.full([block_users, block_items], float("-inf"), tl.float32)
        total = tl.full([block_users, block_items], 0.0, tl.float32)
        weighted = tl.full([block_users, block_items], 0.0, tl.float32)
        for k in range(0, interests):
            agreement = tl.full([block_users, block_items], 0.0, tl.float32)
            for part in range(0, dim, block_dims):
                axis = part + tl.arange(0, block_dims)
                inside = axis < dim
                left = (rows + k)[:, None] * dim + axis[None, :]
                right = columns[None, :] + axis[:, None]
                held = tl.load(vectors + left, mask=real[:, None] & inside[None, :], other=0.0)
                known = tl.load(weight + right, mask=(item < items)[None, :] & inside[:, None], other=0.0)
                agreement = tl.dot(held, known, agreement, input_precision="ieee")
            if attentive:
                # The softmax so far is scaled to the largest product so far; of old and new, one always weighs 1.
                above = agreement > best
                fade = tl.exp(-tl.abs(agreement - best))
                old, new = tl.where(above, fade, 1.0), tl.where(above, 1.0, fade)
                total = total * old + new
                weighted = weighted * old + new * agreement
            best = tl.maximum(best, agreement)
        score = weighted / total if attentive else best
        score = tl.where((item < items)[None, :], score, float("-inf"))
        for turn in range(0, most):
            asking = turn < count
            target = start + turn
            floor = tl.load(low + target, mask=asking, other=float("inf"))
            ceiling = tl.load(high + target, mask=asking, other=float("inf"))
            itself = tl.load(own + target, mask=asking, other=-1)
            hits = (score >= floor[:, None]).to(tl.int32) + (score > ceiling[:, None]).to(tl.int32)
            hits = tl.where(item[None, :] == itself[:, None], 0, hits)
            # Sums of integers are the same in every order.
            tl.atomic_add(twice + target, tl.sum(hits, 1), mask=asking, sem="relaxed")


def _take_back(
    shard: tiles.Shard, vectors: torch.Tensor, asked: _Asked, users: int, barred: tiles.Pairs, twice: torch.Tensor
) -> None:
    """Takes from ``twice`` ``[A]`` what barred items have added: the kernel knows nothing of them."""
    place = torch.full((users,), -1, device=vectors.device)
    place[asked.users] = torch.arange(len(asked.users), device=vectors.device)
    rows, items = barred.within(0, len(shard.weight))
    rows = place[rows]
    pairs = (rows[rows >= 0] * len(shard.weight) + items[rows >= 0]).unique()  # what is barred twice has counted once
    room = max(vectors.shape[1] * vectors.shape[2], int(asked.counts[0]))
    for part in pairs.split(max(1, shard.tile // room)):
        row, item = part // len(shard.weight), part % len(shard.weight)
        score = tiles._reduce((vectors[row] * shard.weight[item].unsqueeze(1)).sum(-1), shard.how)
        lengths = asked.counts[row]
        pair = torch.arange(len(row), device=row.device).repeat_interleave(lengths)
        target = torch.arange(len(pair), device=row.device) + (asked.first[row] - lengths.cumsum(0) + lengths)[pair]
        score = score[pair]
        hits = (score >= asked.low[target]).int() + (score > asked.high[target]).int()
        hits[asked.own[target] == item[pair]] = 0  # it had not counted
        twice.index_add_(0, target, hits, alpha=-1)
