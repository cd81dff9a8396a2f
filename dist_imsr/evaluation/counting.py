"""Counts the items that score higher than a target, tile by tile; close scores are compared in float64."""

from typing import NamedTuple

import torch

from dist_imsr.evaluation.tiles import Pairs, Shard, Tile, above_threshold, exact_scores, exceeds, iterate_tiles


class _Targets(NamedTuple):
    """Targets of the users in a tile."""

    rows: torch.Tensor  # [a], row of each target's user in the tile; 0 .. a - 1 if every user has one target
    low: torch.Tensor  # [a, 1], the lowest score that ties
    high: torch.Tensor  # [a, 1], the highest score that ties
    items: torch.Tensor  # [a], index of each target in the shard


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
    order = rows.argsort() if len(selected) == len(rows) else torch.arange(len(rows), device=rows.device)
    low, high = (scores - ties)[order].unsqueeze(1), (scores + ties)[order].unsqueeze(1)
    targets = _Targets(rows=rows[order], low=low, high=high, items=items[order])
    better = torch.zeros(len(owners), dtype=torch.float64, device=users.device)
    close: list[tuple[torch.Tensor, torch.Tensor]] = []
    pending, limit = 0, max(1, shard.tile_size // users[0].numel())  # close pairs

    def count_close() -> None:
        target, item = (torch.cat(column) for column in zip(*close, strict=True))
        close.clear()
        count = count_exactly(shard, users, owners[order[target]], item, low[target, 0], high[target, 0])
        better.index_add_(0, target, count)

    for tile in iterate_tiles(shard, users, selected, excluded):
        count, target, item = _better(tile, targets)
        better += count
        # A target is not better than itself; it is always among the close pairs.
        other = item != targets.items[target]
        close.append((target[other], item[other]))
        pending += len(close[-1][0])
        if pending > limit:
            count_close()
            pending = 0
    if pending:
        count_close()
    return torch.empty_like(better).index_copy_(0, order, better)


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
    for part in torch.arange(len(rows), device=rows.device).split(max(1, shard.tile_size // users[0].numel())):
        value = exact_scores(users[rows[part]], shard.weight[items[part]], shard.how)
        higher = value > high[part]
        counts[part] = higher.double() + 0.5 * (value >= low[part]).logical_xor_(higher)
    return counts


def _better(tile: Tile, targets: _Targets) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compares a tile's items with the targets.

    Returns:
        For each target, how many items are certainly better, ``[a]`` float64; and the pairs that are too close: targets
        ``[m]`` and indices of items in the shard ``[m]``.
    """
    users, one_each = len(tile.users), len(targets.rows) == len(tile.users)
    margin, fp32_margin, bounds, found = tile.margin(tile.precision), tile.margin("fp32"), tile.upper_bounds(), []
    # Several targets may share a user: they are compared in blocks of the tile's own size.
    for first in range(0, len(targets.rows), users):
        part = slice(first, first + users)
        rows, low, high = targets.rows[part], targets.low[part], targets.high[part]
        best = bounds if one_each else bounds[rows]
        dense, target, column = above_threshold(best, low - margin[rows])
        value, error = tile.pair_scores(rows[target], column)
        sure = value > high[target, 0] + error
        close = (value > low[target, 0] - error).logical_xor_(sure)
        count = low.new_zeros(len(rows), dtype=torch.float64).index_add_(0, target, sure.double())
        target, column = target[close], column[close]
        if len(dense):
            error = fp32_margin[rows[dense]]
            scores = tile.row_scores(rows[dense], best[dense])
            above = exceeds(scores, high[dense] + error)
            count[dense] = above.sum(1).double()
            row, close_column = (exceeds(scores, low[dense] - error) - above).nonzero().T
            target, column = torch.cat([target, dense[row]]), torch.cat([column, close_column])
        found.append((count, target + first, column + tile.start))
    count, target, item = (torch.cat(column) for column in zip(*found, strict=True))
    return count, target, item
