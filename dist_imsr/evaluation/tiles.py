"""A shard's items against users, a tile at a time: who beats a target, and which are the best N.

Nothing of the size [users x items] outlives its tile. The attentive score of erratum E8 is a mean of the K dot products
under softmax weights w, so it never exceeds the largest one, m: only items whose m exceeds a threshold get a softmax.
Nor does it fall below m by more than

    m - sum_k w_k a_k  <=  max_g (K - 1) g e^-g / (1 + (K - 1) e^-g)  =  W((K - 1) / e)     (W: Lambert's function)

as all gaps m - a_k that are stationary are equal; that bounds what an error of the products does to a score. Thresholds
give way by this bound, in fp32 and bf16, and what lies that close to a target is scored again in float64: a rank
depends on neither the precision nor how items fall into tiles.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.special import lambertw

from dist_imsr.model.scoring import Score

Precision = Literal["fp32", "bf16"]

TIE = 2.0**-20  # scores this close, relative to |h| |e|, tie: float sums of another order differ by as much
# Of a dot product, relative to |h| |e|. bf16 rounds both factors and the result to 8 bits.
_ERROR = {"fp32": 2.0**-21, "bf16": 3.1 * 2.0**-8}
_TINY = 1e-30  # an error where vectors are zero, so that strict comparisons find equal scores
_CACHED = 1 << 20  # dot products of a tile: few enough for the last cache, many enough to outweigh the calls
_LIVE = 8  # numbers held for each dot product of a tile, at the most
_COLUMNS = 512  # items that a tile should have at least, for the matrix product's sake
_DENSE = 1 / 8  # the share of a row's items from which on softmaxes of all of them are cheaper


class Shard(NamedTuple):
    """A rank's known items, and how they are to be scored.

    Args:
        weight: ``[n, d]`` float32, their rows.
        first: the id of row 0.
        how: the scoring function.
        precision: of the matrix products; scores are exact in both.
        memory: bytes that tiles may take.
    """

    weight: torch.Tensor
    first: int
    how: Score = "attentive"
    precision: Precision = "fp32"
    memory: int = 1 << 28

    @property
    def tile(self) -> int:
        """Dot products of a tile."""
        room = self.memory // (4 * _LIVE)
        return max(1, min(room, _CACHED) if self.weight.device.type == "cpu" else room)

    def users(self, count: int) -> int:
        """How many users with so many interests a tile should hold at the most."""
        return max(1, self.tile // (_COLUMNS * max(count, 1)))


class Pairs:
    """Pairs of a row and an item, found by stretches of items.

    Args:
        rows: ``[n]`` int64.
        items: ``[n]`` int64, places in the shard; those outside of it are never found.
    """

    def __init__(self, rows: torch.Tensor, items: torch.Tensor) -> None:
        self.items, order = items.sort()
        self.rows = rows[order]
        self._sorted = self.items.numpy(force=True)

    def within(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The pairs of a stretch.

        Args:
            start: its first item.
            stop: the item behind its last.

        Returns:
            Rows, and items counted from ``start``.
        """
        found = slice(*np.searchsorted(self._sorted, (start, stop)).tolist())
        return self.rows[found], self.items[found] - start


class _Tile(NamedTuple):
    """Users, all with K interests, against a stretch of items."""

    users: torch.Tensor  # [b, K, d]
    items: torch.Tensor  # [n, d]
    start: int  # the first item's place in the shard
    agreement: torch.Tensor  # [b, K, n], dot products in the precision that was asked for
    barred: tuple[torch.Tensor, torch.Tensor] | None  # rows and columns of what a user must not get, if anything
    lengths: torch.Tensor  # [b, 1], of the users' longest interests
    norms: torch.Tensor  # [n], of the items
    factor: float  # the length of a score's gradient, at the most: what it multiplies a dot product's error by
    how: Score

    @property
    def precision(self) -> Precision:
        """Of the dot products."""
        return "fp32" if self.agreement.dtype == torch.float32 else "bf16"

    def margin(self, precision: Precision) -> torch.Tensor:
        """The most that any of a user's scores may be wrong by ``[b, 1]``, above 0."""
        return (_ERROR[precision] * self.factor * self.norms.max() * self.lengths).clamp_(min=_TINY)

    def near(self, rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of pairs ``[m]``, and the most that each may be wrong by, above 0."""
        error = _ERROR[self.precision] * self.factor * self.norms[columns] * self.lengths[rows, 0]
        return _reduce(self.agreement[rows, :, columns].float(), self.how), error.clamp_(min=_TINY)

    def peak(self) -> torch.Tensor:
        """Each user's largest dot product ``[b]`` float32, be it of what the user must not get."""
        return self.agreement.flatten(1).amax(1).float()

    def best(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The largest of each K for some users, distinct ones, or all: ``[r, n]`` float32; -inf for what is barred."""
        best = (self.agreement if rows is None else self.agreement[rows]).amax(1).float()
        if self.barred is not None:
            row, column = self.barred
            if rows is not None:
                place = torch.full((len(self.users),), -1, device=row.device)
                place[rows] = torch.arange(len(rows), device=row.device)
                row, column = place[row][place[row] >= 0], column[place[row] >= 0]
            best[row, column] = -torch.inf
        return best

    def dense(self, rows: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        """Scores of all items ``[r, n]`` for some users, in float32; -inf where it is their ``best``, ``[r, n]``."""
        if self.precision == "fp32":
            agreement = self.agreement[rows]
        else:
            agreement = (self.users[rows].flatten(0, 1) @ self.items.T).view(len(rows), -1, len(self.items))
        scores = _reduce(agreement, self.how)
        return scores.masked_fill_(best == -torch.inf, -torch.inf) if self.barred is not None else scores


def count_better(
    shard: Shard,
    users: torch.Tensor,
    owners: torch.Tensor,
    items: torch.Tensor,
    scores: torch.Tensor,
    ties: torch.Tensor,
    barred: Pairs,
) -> torch.Tensor:
    """How many of a shard's items beat each target; a tie counts as half.

    Args:
        shard: the items.
        users: ``[B, K, d]`` float32, interests of users who all have K of them.
        owners: ``[A]`` int64, each target's place among the users.
        items: ``[A]`` int64, the targets' places in the shard, maybe outside of it.
        scores: ``[A]``, the targets' scores.
        ties: ``[A]``, how close a score must be to tie.
        barred: items that do not count for a user.

    Returns:
        ``[A]`` float64.
    """
    if not users.shape[1]:
        return all_tied(len(shard.weight), owners, items, barred)
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

    for tile in _tiles(shard, users, there, barred):
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


def all_tied(count: int, owners: torch.Tensor, items: torch.Tensor, barred: Pairs) -> torch.Tensor:
    """`count_better` for users without interests, to whom all of a shard's items are alike.

    Args:
        count: of the shard's items.
        owners: as there.
        items: as there.
        barred: as there.

    Returns:
        ``[A]`` float64.
    """
    inside = (barred.items >= 0) & (barred.items < count)
    unwanted = (barred.rows * count + barred.items)[inside].unique()
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
        value = _exact(users[rows[part]], shard.weight[items[part]], shard.how)
        higher = value > high[part]
        worth[part] = higher.double() + 0.5 * (value >= low[part]).logical_xor_(higher)
    return worth


def steepest(how: Score, count: int) -> float:
    """What an error of the dot products is multiplied by in a score, at the most.

    Args:
        how: the scoring function.
        count: K.

    Returns:
        The largest length of a score's gradient, in the norm that goes with the largest error of a dot product: for the
        attentive score 1 + sum_k w_k |a_k - score|, which is at most 1 + 2 widths.
    """
    width = 0.0 if how == "max" or count < 2 else float(lambertw((count - 1) / math.e).real)
    return 1 + 2 * width


def best_items(shard: Shard, users: torch.Tensor, top: int, barred: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """The best items of a shard for each user; of equal scores the smaller id comes first.

    Args:
        shard: the items.
        users: ``[B, K, d]`` float32, interests of users who all have K of them.
        top: N.
        barred: items that a user must not get.

    Returns:
        Scores ``[B, N]`` in descending order, and ids ``[B, N]`` int64; -inf and -1 where there are no more items.
    """
    if not users.shape[1]:  # to whom all items are alike, as they are to one interest of length zero
        users = users.new_zeros(len(users), 1, users.shape[2])
    scores = users.new_full((len(users), top), -torch.inf)
    ids = torch.full((len(users), top), -1, device=users.device)
    waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    everybody = torch.arange(len(users), device=users.device)
    held = 0

    def merge() -> None:
        nonlocal scores, ids
        row, found, place = (torch.cat(column) for column in zip(*waiting, strict=True))
        waiting.clear()
        row, order = row.sort(stable=True)
        lengths = row.bincount(minlength=len(users))
        slot = top + torch.arange(len(row), device=row.device) - (lengths.cumsum(0) - lengths)[row]
        size = (len(users), int(lengths.max()))
        scores = torch.cat([scores, scores.new_full(size, -torch.inf)], 1)
        ids = torch.cat([ids, ids.new_full(size, -1)], 1)
        scores[row, slot], ids[row, slot] = found[order], place[order]
        scores, kept = scores.sort(dim=1, descending=True, stable=True)
        scores, ids = scores[:, :top].contiguous(), ids.gather(1, kept[:, :top])

    for tile in _tiles(shard, users, everybody, barred):
        floor = scores[:, -1:]
        limit = floor - tile.margin(tile.precision)
        hit = (tile.peak() > limit.squeeze(1)).nonzero().squeeze(1)  # soon few: most tiles hold nothing for most users
        best = tile.best(hit)
        many, row, column = _split(best, limit[hit])
        dense, row = hit[many], hit[row]
        value, error = tile.near(row, column)
        real = value > floor[row, 0] - error
        row, column, value = row[real], column[real], value[real]
        if tile.precision == "bf16":
            value = _exact(tile.users[row], tile.items[column], tile.how).float()
        if len(dense):
            every, place = tile.dense(dense, best[many]).sort(dim=1, descending=True, stable=True)
            every, place = every[:, :top], place[:, :top]
            real = every > floor[dense]
            row = torch.cat([row, dense.unsqueeze(1).expand_as(every)[real]])
            column, value = torch.cat([column, place[real]]), torch.cat([value, every[real]])
        waiting.append((row, value, column + tile.start + shard.first))
        held += len(row)
        if held > len(users) * top / 4:
            merge()
            held = 0
    if held:
        merge()
    return scores, ids


class _Asked(NamedTuple):
    """Targets whose users a tile holds."""

    rows: torch.Tensor  # [a], each one's user in the tile; 0 .. a - 1 where every user has one target
    low: torch.Tensor  # [a, 1], what ties at least
    high: torch.Tensor  # [a, 1], what ties at the most
    items: torch.Tensor  # [a], each one's own place in the shard


def _better(tile: _Tile, asked: _Asked) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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
        dense, target, column = _split(best, low - margin[rows])
        value, error = tile.near(rows[target], column)
        sure = value > high[target, 0] + error
        close = (value > low[target, 0] - error).logical_xor_(sure)
        count = low.new_zeros(len(rows), dtype=torch.float64).index_add_(0, target, sure.double())
        target, column = target[close], column[close]
        if len(dense):
            error = finer[rows[dense]]
            scores = tile.dense(rows[dense], best[dense])
            above = _above(scores, high[dense] + error)
            count[dense] = above.sum(1).double()
            row, place = (_above(scores, low[dense] - error) - above).nonzero().T
            target, column = torch.cat([target, dense[row]]), torch.cat([column, place])
        found.append((count, target + first, column + tile.start))
    count, target, place = (torch.cat(column) for column in zip(*found, strict=True))
    return count, target, place


def _above(values: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """1 where a value ``[a, n]`` exceeds the threshold ``[a, 1]``; floats, which compare and add up faster."""
    return torch.gt(values, threshold, out=torch.empty_like(values))


def _split(best: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where scores can exceed a threshold: the rows where many can, and the pairs of all other rows.

    Args:
        best: ``[a, n]``, the largest that scores can be.
        threshold: ``[a, 1]``.

    Returns:
        Rows ``[r]``; rows ``[m]`` and columns ``[m]`` of pairs.
    """
    above = _above(best, threshold)
    many = above.sum(1)
    few = ((many > 0) & (many <= _DENSE * best.shape[1])).nonzero().squeeze(1)
    row, column = above[few].nonzero().T
    return (many > _DENSE * best.shape[1]).nonzero().squeeze(1), few[row], column


def _tiles(shard: Shard, users: torch.Tensor, there: torch.Tensor, barred: Pairs) -> Iterator[_Tile]:
    """Some of the users against the shard's items; a tile is good until the next one is asked for."""
    place = torch.full((len(users),), -1, device=users.device)
    place[there] = torch.arange(len(there), device=users.device)
    users = users[there]
    count, exact = users.shape[1], shard.precision == "fp32"
    factors = users.flatten(0, 1).to(torch.float32 if exact else torch.bfloat16)
    lengths = users.norm(dim=-1).amax(1, keepdim=True)
    factor = steepest(shard.how, count)
    size = max(1, shard.tile // (len(users) * count))
    room = factors.new_empty(len(factors) * size)
    for first in range(0, len(shard.weight), size):
        items = shard.weight[first : first + size]
        agreement = room[: len(factors) * len(items)].view(len(factors), len(items))
        torch.mm(factors, items.to(factors.dtype).T, out=agreement)
        agreement = agreement.view(len(users), count, len(items))
        rows, columns = barred.within(first, first + len(items))
        held = place[rows] if len(rows) else rows
        unwanted = (held[held >= 0], columns[held >= 0]) if len(rows) else None
        yield _Tile(users, items, first, agreement, unwanted, lengths, items.norm(dim=1), factor, shard.how)


def _exact(users: torch.Tensor, items: torch.Tensor, how: Score) -> torch.Tensor:
    """Scores ``[m]`` of pairs, users ``[m, K, d]`` and items ``[m, d]``, in float64."""
    return _reduce((users.double() * items.double().unsqueeze(1)).sum(-1), how)


def _reduce(agreement: torch.Tensor, how: Score) -> torch.Tensor:
    """Scores from dot products over the second axis, in few passes over memory."""
    if agreement.shape[1] == 0:
        return agreement.new_zeros(agreement.shape[0], *agreement.shape[2:])
    best = agreement.amax(1)
    if how == "max" or agreement.shape[1] == 1:
        return best
    weights = (agreement - best.unsqueeze(1)).exp_()
    total = weights.sum(1)
    return weights.mul_(agreement).sum(1).div_(total)
