"""A shard's items against users, a tile at a time, and how far from the truth its scores may be.

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


class Tile(NamedTuple):
    """Users, all with K interests, against a stretch of items.

    Args:
        users: ``[b, K, d]`` float32.
        items: ``[n, d]`` float32.
        start: the first item's place in the shard.
        agreement: ``[b, K, n]``, dot products in the precision that was asked for.
        excluded: rows and columns of what a user must not get, if anything.
        lengths: ``[b, 1]``, of the users' longest interests.
        norms: ``[n]``, of the items.
        factor: what a score multiplies a dot product's error by, at the most (`steepest`).
        how: the scoring function.
    """

    users: torch.Tensor
    items: torch.Tensor
    start: int
    agreement: torch.Tensor
    excluded: tuple[torch.Tensor, torch.Tensor] | None
    lengths: torch.Tensor
    norms: torch.Tensor
    factor: float
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
        return reduced(self.agreement[rows, :, columns].float(), self.how), error.clamp_(min=_TINY)

    def peak(self) -> torch.Tensor:
        """Each user's largest dot product ``[b]`` float32, be it of what the user must not get."""
        return self.agreement.flatten(1).amax(1).float()

    def best(self, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The largest of each K for some users, distinct ones, or all: ``[r, n]`` float32; -inf if excluded."""
        best = (self.agreement if rows is None else self.agreement[rows]).amax(1).float()
        if self.excluded is not None:
            row, column = self.excluded
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
        scores = reduced(agreement, self.how)
        return scores.masked_fill_(best == -torch.inf, -torch.inf) if self.excluded is not None else scores


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


def exceeds(values: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Compares values with a threshold.

    Args:
        values: ``[a, n]``.
        threshold: ``[a, 1]``.

    Returns:
        ``[a, n]``, 1 above and 0 elsewhere; floats, which compare and add up faster.
    """
    return torch.gt(values, threshold, out=torch.empty_like(values))


def candidates(best: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where scores can exceed a threshold: the rows where many can, and the pairs of all other rows.

    Args:
        best: ``[a, n]``, the largest that scores can be.
        threshold: ``[a, 1]``.

    Returns:
        Rows ``[r]``; rows ``[m]`` and columns ``[m]`` of pairs.
    """
    above = exceeds(best, threshold)
    many = above.sum(1)
    few = ((many > 0) & (many <= _DENSE * best.shape[1])).nonzero().squeeze(1)
    row, column = above[few].nonzero().T
    return (many > _DENSE * best.shape[1]).nonzero().squeeze(1), few[row], column


def tiles_of(shard: Shard, users: torch.Tensor, there: torch.Tensor, excluded: Pairs) -> Iterator[Tile]:
    """Some of the users against the shard's items, a stretch of items after the other.

    Args:
        shard: the items.
        users: ``[B, K, d]`` float32, interests of users who all have K of them.
        there: ``[b]`` int64, the places of those that are wanted.
        excluded: of all users, by their places.

    Yields:
        Tiles, each good until the next one is asked for.
    """
    place = torch.full((len(users),), -1, device=users.device)
    place[there] = torch.arange(len(there), device=users.device)
    users = users[there]
    count = users.shape[1]
    factors = users.flatten(0, 1).to(torch.float32 if shard.precision == "fp32" else torch.bfloat16)
    lengths = users.norm(dim=-1).amax(1, keepdim=True)
    factor = steepest(shard.how, count)
    size = max(1, shard.tile // (len(users) * count))
    room = factors.new_empty(len(factors) * size)
    for first in range(0, len(shard.weight), size):
        items = shard.weight[first : first + size]
        agreement = room[: len(factors) * len(items)].view(len(factors), len(items))
        torch.mm(factors, items.to(factors.dtype).T, out=agreement)
        agreement = agreement.view(len(users), count, len(items))
        rows, columns = excluded.within(first, first + len(items))
        held = place[rows] if len(rows) else rows
        unwanted = (held[held >= 0], columns[held >= 0]) if len(rows) else None
        yield Tile(users, items, first, agreement, unwanted, lengths, items.norm(dim=1), factor, shard.how)


def exact(users: torch.Tensor, items: torch.Tensor, how: Score) -> torch.Tensor:
    """Scores of pairs of a user and an item (Eq. 5).

    Args:
        users: ``[m, K, d]``.
        items: ``[m, d]``.
        how: the scoring function.

    Returns:
        ``[m]`` float64.
    """
    return reduced((users.double() * items.double().unsqueeze(1)).sum(-1), how)


def reduced(agreement: torch.Tensor, how: Score) -> torch.Tensor:
    """Scores from dot products (Eq. 5, erratum E8), in few passes over memory.

    Args:
        agreement: ``[a, K, ...]``, the dot products of a user's interests with an item.
        how: the scoring function.

    Returns:
        ``[a, ...]``; 0 where K is.
    """
    if agreement.shape[1] == 0:
        return agreement.new_zeros(agreement.shape[0], *agreement.shape[2:])
    best = agreement.amax(1)
    if how == "max" or agreement.shape[1] == 1:
        return best
    weights = (agreement - best.unsqueeze(1)).exp_()
    total = weights.sum(1)
    return weights.mul_(agreement).sum(1).div_(total)
