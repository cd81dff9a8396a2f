"""Scores of users and a shard's items, tile by tile, with bounds of their errors.

Nothing of the size [users x items] outlives its tile. The attentive score of erratum E8 is a mean of the K dot products
with softmax weights w, so it never exceeds the largest one, m: a softmax is computed only for items whose m exceeds a
threshold. The score is below m by at most

    m - sum_k w_k a_k  <=  max_g (K - 1) g e^-g / (1 + (K - 1) e^-g)  =  W((K - 1) / e)     (W: Lambert's function)

since all stationary gaps m - a_k are equal; this bounds how an error of the products changes a score. Thresholds are
relaxed by the bound, in fp32 and bf16, and items that close to a target are scored again in float64: ranks depend
neither on the precision nor on the tiles.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.special import lambertw

from dist_imsr.model.scoring import Score

Precision = Literal["fp32", "bf16"]

TIE = 2.0**-20  # scores this close, relative to |h| |e|, tie: sums in another order differ by as much
# Error of a dot product, relative to |h| |e|. bf16 rounds both factors and the result to 8 bits.
_ERROR = {"fp32": 2.0**-21, "bf16": 3.1 * 2.0**-8}
TINY = 1e-30  # the error for zero vectors, so that strict comparisons find equal scores
_CACHED = 1 << 20  # dot products per tile on CPU: few enough for the last-level cache, many enough to amortise calls
_LIVE = 8  # the most numbers in memory per dot product of a tile
_COLUMNS = 512  # the least items per tile for an efficient matrix product
_DENSE = 1 / 8  # if more than this share of a row's items needs a softmax, computing all of them is cheaper


class Shard(NamedTuple):
    """The known items of a rank, and how to score them.

    Args:
        weight: ``[n, d]`` float32, their embeddings.
        first: the id of row 0.
        how: the scoring function.
        precision: precision of the matrix products; ranks do not depend on it.
        memory: bytes for tiles.
    """

    weight: torch.Tensor
    first: int
    how: Score = "attentive"
    precision: Precision = "fp32"
    memory: int = 1 << 28

    @property
    def tile_size(self) -> int:
        """Dot products per tile."""
        size = self.memory // (4 * _LIVE)
        return max(1, min(size, _CACHED) if self.weight.device.type == "cpu" else size)

    def max_users(self, num_interests: int) -> int:
        """The most users per tile, if each has ``num_interests``."""
        return max(1, self.tile_size // (_COLUMNS * max(num_interests, 1)))


class Pairs:
    """Pairs of a row and an item, sorted by item.

    Args:
        rows: ``[n]`` int64.
        items: ``[n]`` int64, indices in the shard; pairs with an item outside of it are ignored.
    """

    def __init__(self, rows: torch.Tensor, items: torch.Tensor) -> None:
        self.items, order = items.sort()
        self.rows = rows[order]
        self._sorted = self.items.numpy(force=True)

    def within(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and items of the pairs with an item in start..stop-1; items are counted from ``start``."""
        found = slice(*np.searchsorted(self._sorted, (start, stop)).tolist())
        return self.rows[found], self.items[found] - start


class Tile(NamedTuple):
    """Users with K interests each, and consecutive items of a shard.

    Args:
        users: ``[b, K, d]`` float32.
        items: ``[n, d]`` float32.
        start: index of the first item in the shard.
        agreement: ``[b, K, n]``, dot products in the shard's precision; -inf for an excluded item.
        lengths: ``[b]``, norms of the users' longest interests.
        norms: ``[n]``, norms of the items.
        factor: `error_factor` of the scores.
        how: the scoring function.
    """

    users: torch.Tensor
    items: torch.Tensor
    start: int
    agreement: torch.Tensor
    lengths: torch.Tensor
    norms: torch.Tensor
    factor: float
    how: Score

    @property
    def precision(self) -> Precision:
        """Precision of the dot products."""
        return "fp32" if self.agreement.dtype == torch.float32 else "bf16"

    def bounds(self, precision: Precision) -> torch.Tensor:
        """The largest error of each user's scores over the norm of the item, ``[b]``."""
        return _ERROR[precision] * self.factor * self.lengths

    @property
    def margin(self) -> torch.Tensor:
        """The largest error of each user's scores ``[b, 1]``, above 0."""
        return (self.norms.max() * self.bounds(self.precision)).clamp_(min=TINY).unsqueeze(1)

    def pair_scores(self, rows: torch.Tensor, columns: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of pairs ``[m]``, and bounds of their errors ``[m]``, above 0."""
        error = self.norms[columns] * self.bounds(self.precision)[rows]
        return reduce_interests(self.agreement[rows, :, columns].float(), self.how), error.clamp_(min=TINY)

    def peak(self) -> torch.Tensor:
        """Each user's largest dot product ``[b]`` float32, -inf if all items are excluded."""
        return self.agreement.flatten(1).amax(1).float()

    def upper_bounds(self, rows: torch.Tensor) -> torch.Tensor:
        """The largest of the K dot products ``[r, n]`` float32 of some rows, -inf if excluded."""
        return self.agreement[rows].amax(1).float()

    def row_scores(self, rows: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        """Scores of all items ``[r, n]`` float32 for some rows; -inf where their upper bounds ``best [r, n]`` are."""
        if self.precision == "fp32":
            agreement = self.agreement[rows]
        else:
            agreement = (self.users[rows].flatten(0, 1) @ self.items.T).view(len(rows), -1, len(self.items))
        return reduce_interests(agreement, self.how).masked_fill_(best == -torch.inf, -torch.inf)


@cache
def softmax_gap(how: Score, num_interests: int) -> float:
    """The most by which a score is below the largest of its K dot products: W((K - 1) / e)."""
    return 0.0 if how == "max" or num_interests < 2 else float(lambertw((num_interests - 1) / math.e).real)


def error_factor(how: Score, num_interests: int) -> float:
    """The most by which a score multiplies the largest error of its K dot products.

    It is the largest 1-norm of a score's gradient: for the attentive score 1 + sum_k w_k |a_k - score|, which is at
    most 1 + 2 W((K - 1) / e).
    """
    return 1 + 2 * softmax_gap(how, num_interests)


def above_threshold(bounds: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Finds the scores that may exceed a threshold.

    Args:
        bounds: ``[a, n]``, upper bounds of the scores.
        threshold: ``[a, 1]``.

    Returns:
        Rows ``[r]`` in which many scores may; rows ``[m]`` and columns ``[m]`` of the pairs in all other rows.
    """
    above = torch.gt(bounds, threshold, out=torch.empty_like(bounds))  # floats, which compare and add up faster
    many = above.sum(1)
    few = ((many > 0) & (many <= _DENSE * bounds.shape[1])).nonzero().squeeze(1)
    row, column = above[few].nonzero().T
    return (many > _DENSE * bounds.shape[1]).nonzero().squeeze(1), few[row], column


def iterate_tiles(shard: Shard, users: torch.Tensor, selected: torch.Tensor, excluded: Pairs) -> Iterator[Tile]:
    """Tiles of some users and all items of a shard.

    Args:
        shard: the items.
        users: ``[B, K, d]`` float32, interests of users with K interests each.
        selected: ``[b]`` int64, indices of users.
        excluded: pairs of a user's index and an item.

    Yields:
        Tiles, each valid until the next one: they share a buffer.
    """
    place = torch.full((len(users),), -1, device=users.device)
    place[selected] = torch.arange(len(selected), device=users.device)
    users = users[selected]
    count = users.shape[1]
    factors = users.flatten(0, 1).to(torch.float32 if shard.precision == "fp32" else torch.bfloat16)
    lengths = users.norm(dim=-1).amax(1)
    factor = error_factor(shard.how, count)
    size = max(1, shard.tile_size // (len(users) * count))
    buffer = factors.new_empty(len(factors) * size)
    for first in range(0, len(shard.weight), size):
        items = shard.weight[first : first + size]
        agreement = buffer[: len(factors) * len(items)].view(len(factors), len(items))
        torch.mm(factors, items.to(factors.dtype).T, out=agreement)
        agreement = agreement.view(len(users), count, len(items))
        rows, columns = excluded.within(first, first + len(items))
        kept = (place[rows] >= 0).nonzero().squeeze(1)
        agreement[place[rows[kept]], :, columns[kept]] = -torch.inf
        yield Tile(
            users=users,
            items=items,
            start=first,
            agreement=agreement,
            lengths=lengths,
            norms=items.norm(dim=1),
            factor=factor,
            how=shard.how,
        )


def exact_scores(users: torch.Tensor, items: torch.Tensor, how: Score) -> torch.Tensor:
    """Scores ``[m]`` float64 of pairs of a user ``[m, K, d]`` and an item ``[m, d]`` (Eq. 5)."""
    return reduce_interests((users.double() * items.double().unsqueeze(1)).sum(-1), how)


def reduce_interests(agreement: torch.Tensor, how: Score) -> torch.Tensor:
    """Scores ``[a, ...]`` from dot products ``[a, K, ...]`` (Eq. 5, erratum E8); 0 if K is 0."""
    if agreement.shape[1] == 0:
        return agreement.new_zeros(agreement.shape[0], *agreement.shape[2:])
    best = agreement.amax(1)
    if how == "max" or agreement.shape[1] == 1:
        return best
    weights = (agreement - best.unsqueeze(1)).exp_()
    total = weights.sum(1)
    return weights.mul_(agreement).sum(1).div_(total)
