"""Counts the items that score higher than a target, tile by tile; close scores are compared in float64."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from dist_imsr.evaluation.count_loop import count_above
from dist_imsr.evaluation.tiles import TINY, Pairs, Shard, Tile, exact_scores, iterate_tiles, softmax_gap


class _Targets(NamedTuple):
    """Some of the targets, and the number of items that are certainly better so far."""

    rows: torch.Tensor  # [a], row of each target's user in the tiles, ascending
    low: torch.Tensor  # [a], the lowest score that ties
    high: torch.Tensor  # [a], the highest score that ties
    sure: torch.Tensor  # [a] int64, which `_compare` adds to


def count_better(
    shard: Shard,
    users: torch.Tensor,
    owners: torch.Tensor,
    items: torch.Tensor,
    scores: torch.Tensor,
    ties: torch.Tensor,
    excluded: Pairs,
) -> torch.Tensor:
    """How many of a shard's items beat each target; a tie counts as half.

    Args:
        shard: the items.
        users: ``[B, K, d]`` float32, interests of users with K interests each.
        owners: ``[A]`` int64, index of each target's user.
        items: ``[A]`` int64, index of each target in the shard, possibly outside of it.
        scores: ``[A]``, scores of the targets.
        ties: ``[A]``, the largest difference of scores that tie.
        excluded: pairs of a user's index and an item that does not count for the user.

    Returns:
        ``[A]`` float64.
    """
    if not users.shape[1]:
        return all_tied(len(shard.weight), owners, items, excluded)
    selected, rows = owners.unique(return_inverse=True)
    rows, order = rows.sort()
    low, high, items = (scores - ties)[order], (scores + ties)[order], items[order]
    sure = torch.zeros(len(owners), dtype=torch.int64)
    better = torch.zeros(len(owners), dtype=torch.float64)
    close: list[tuple[torch.Tensor, torch.Tensor]] = []
    pending, limit = 0, max(1, shard.tile_size // users[0].numel())  # close pairs

    def count_close() -> None:
        target, item = (torch.cat(column) for column in zip(*close, strict=True))
        close.clear()
        count = count_exactly(shard, users, owners[order[target]], item, low[target], high[target])
        better.index_add_(0, target, count)

    # At most as many targets at a time as the tile has users, so that its lists of pairs are no longer than itself.
    num_threads = torch.get_num_threads()
    size = max(1, -(-len(selected) // num_threads))
    parts = [
        _Targets(*columns) for columns in zip(*(whole.split(size) for whole in (rows, low, high, sure)), strict=True)
    ]
    with ThreadPoolExecutor(num_threads) as threads:
        each = threads.map if num_threads > 1 else map  # waking another thread takes longer than a small tile
        for tile in iterate_tiles(shard, users, selected, excluded):
            compared = each(partial(_compare, tile, tile.agreement.float()), parts)
            for first, (target, item) in zip(range(0, len(rows), size), compared, strict=True):
                other = item != items[first + target]  # a target is not better than itself; it is always a close pair
                close.append((first + target[other], item[other]))
                pending += len(close[-1][0])
            if pending > limit:
                count_close()
                pending = 0
    if pending:
        count_close()
    return torch.empty_like(better).index_copy_(0, order, better + sure)


def all_tied(count: int, owners: torch.Tensor, items: torch.Tensor, excluded: Pairs) -> torch.Tensor:
    """`count_better` for users without interests: all ``count`` items of the shard tie."""
    inside = (excluded.items >= 0) & (excluded.items < count)
    keys = (excluded.rows * count + excluded.items)[inside].unique()
    num_excluded = (keys // count).bincount(minlength=int(owners.max()) + 1 if len(owners) else 0)[owners]
    itself = (items >= 0) & (items < count) & ~torch.isin(owners * count + items, keys)
    return (count - num_excluded - itself.long()).double() / 2


def count_exactly(
    shard: Shard, users: torch.Tensor, rows: torch.Tensor, items: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """Compares items with targets in float64.

    Args:
        shard: the items.
        users: ``[B, K, d]`` float32.
        rows: ``[m]`` int64, indices of users.
        items: ``[m]`` int64, indices in the shard.
        low: ``[m]``, the lowest score that ties.
        high: ``[m]``, the highest score that ties.

    Returns:
        ``[m]`` float64: 1 for an item above the target, one half for a tie, 0 below.
    """
    counts = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    size = max(1, shard.tile_size // users[0].numel())
    for part in (slice(first, first + size) for first in range(0, len(rows), size)):
        value = exact_scores(users[rows[part]], shard.weight[items[part]], shard.how)
        higher = value > high[part]
        counts[part] = higher.double() + 0.5 * (value >= low[part]).logical_xor_(higher)
    return counts


def _compare(tile: Tile, agreement: torch.Tensor, targets: _Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts a tile's certainly better items.

    Returns:
        The pairs that are too close: targets ``[m]`` and indices of items in the shard ``[m]``.
    """
    close = np.empty((len(targets.rows) * len(tile.items), 2), dtype=np.int32)
    found = count_above(
        agreement.numpy(),
        targets.rows.numpy(),
        targets.low.numpy(),
        targets.high.numpy(),
        tile.bounds(tile.precision).numpy(),
        tile.norms.numpy(),
        TINY,
        softmax_gap(tile.how, agreement.shape[1]),
        tile.users.numpy(),
        tile.items.numpy(),
        tile.bounds("fp32").numpy(),
        targets.sure.numpy(),
        close,
    )
    target, item = torch.from_numpy(close[:found]).long().T
    return target, item + tile.start
