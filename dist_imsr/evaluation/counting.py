"""Who beats a target, tile by tile; what is too close to tell is told in float64."""

from typing import NamedTuple

import torch

from dist_imsr.evaluation.tiles import Pairs, Shard, Tile, candidates, exact, exceeds, tiles_of


class _Asked(NamedTuple):
    """Targets whose users a tile holds."""

    rows: torch.Tensor  # [a], each one's user in the tile; 0 .. a - 1 where every user has one target
    low: torch.Tensor  # [a, 1], what ties at least
    high: torch.Tensor  # [a, 1], what ties at the most
    items: torch.Tensor  # [a], each one's own place in the shard


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
        users: ``[B, K, d]`` float32, interests of users who all have K of them.
        owners: ``[A]`` int64, each target's place among the users.
        items: ``[A]`` int64, the targets' places in the shard, maybe outside of it.
        scores: ``[A]``, the targets' scores.
        ties: ``[A]``, how close a score must be to tie.
        excluded: items that do not count for a user.

    Returns:
        ``[A]`` float64.
    """
    if not users.shape[1]:
        return all_tied(len(shard.weight), owners, items, excluded)
    there, rows = owners.unique(return_inverse=True)
    order = rows.argsort() if len(there) == len(rows) else torch.arange(len(rows), device=rows.device)
    low, high = (scores - ties)[order].unsqueeze(1), (scores + ties)[order].unsqueeze(1)
    asked = _Asked(rows[order], low, high, items[order])
    better = torch.zeros(len(owners), dtype=torch.float64, device=users.device)
    close: list[tuple[torch.Tensor, torch.Tensor]] = []
    held, most = 0, max(1, shard.tile // users[0].numel())  # close pairs; how many vectors are gathered at a time

    def settle() -> None:
        target, place = (torch.cat(column) for column in zip(*close, strict=True))
        close.clear()
        worth = settled(shard, users, owners[order[target]], place, low[target, 0], high[target, 0])
        better.index_add_(0, target, worth)

    for tile in tiles_of(shard, users, there, excluded):
        count, target, place = _better(tile, asked)
        better += count
        # A target does not beat itself; it is always among the close ones.
        other = place != asked.items[target]
        close.append((target[other], place[other]))
        held += len(close[-1][0])
        if held > most:
            settle()
            held = 0
    if held:
        settle()
    return torch.empty_like(better).index_copy_(0, order, better)


def all_tied(count: int, owners: torch.Tensor, items: torch.Tensor, excluded: Pairs) -> torch.Tensor:
    """`count_better` for users without interests, to whom all of a shard's items are alike.

    Args:
        count: of the shard's items.
        owners: as there.
        items: as there.
        excluded: as there.

    Returns:
        ``[A]`` float64.
    """
    inside = (excluded.items >= 0) & (excluded.items < count)
    unwanted = (excluded.rows * count + excluded.items)[inside].unique()
    fewer = (unwanted // count).bincount(minlength=int(owners.max()) + 1 if len(owners) else 0)[owners]
    own = (items >= 0) & (items < count) & ~torch.isin(owners * count + items, unwanted)
    return (count - fewer - own.long()).double() / 2


def settled(
    shard: Shard, users: torch.Tensor, rows: torch.Tensor, items: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """What pairs of a user and an item add to a target's count, by their scores in float64.

    Args:
        shard: the items.
        users: ``[B, K, d]`` float32.
        rows: ``[m]`` int64, the pairs' users.
        items: ``[m]`` int64, their places in the shard.
        low: ``[m]``, what ties at least.
        high: ``[m]``, what ties at the most.

    Returns:
        ``[m]`` float64: 1 above, one half for a tie, 0 below.
    """
    worth = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    for part in torch.arange(len(rows), device=rows.device).split(max(1, shard.tile // users[0].numel())):
        value = exact(users[rows[part]], shard.weight[items[part]], shard.how)
        higher = value > high[part]
        worth[part] = higher.double() + 0.5 * (value >= low[part]).logical_xor_(higher)
    return worth


def _better(tile: Tile, asked: _Asked) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which of a tile's items beat a target.

    Returns:
        How many do so beyond doubt, ``[a]`` float64; and pairs that are too close to tell: targets ``[m]`` and the
        items' places in the shard ``[m]``.
    """
    users, alone = len(tile.users), len(asked.rows) == len(tile.users)
    margin, finer, whole, found = tile.margin(tile.precision), tile.margin("fp32"), tile.best(), []
    # Several targets may share a user: they are compared in parts of the tile's own size.
    for first in range(0, len(asked.rows), users):
        part = slice(first, first + users)
        rows, low, high = asked.rows[part], asked.low[part], asked.high[part]
        best = whole if alone else whole[rows]
        dense, target, column = candidates(best, low - margin[rows])
        value, error = tile.near(rows[target], column)
        sure = value > high[target, 0] + error
        close = (value > low[target, 0] - error).logical_xor_(sure)
        count = low.new_zeros(len(rows), dtype=torch.float64).index_add_(0, target, sure.double())
        target, column = target[close], column[close]
        if len(dense):
            error = finer[rows[dense]]
            scores = tile.dense(rows[dense], best[dense])
            above = exceeds(scores, high[dense] + error)
            count[dense] = above.sum(1).double()
            row, place = (exceeds(scores, low[dense] - error) - above).nonzero().T
            target, column = torch.cat([target, dense[row]]), torch.cat([column, place])
        found.append((count, target + first, column + tile.start))
    count, target, place = (torch.cat(column) for column in zip(*found, strict=True))
    return count, target, place
