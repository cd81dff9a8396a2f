"""The CUDA twin of ``counting.count_better``: products, scores and comparisons in one kernel, no score in memory.

Tensor cores multiply rounded vectors, so a score is known but for an error, and the kernel counts only what that error
cannot turn: where score - error and score + error lie on the same side of a target's edges. Other pairs go to a list
and are scored again in float64, as in ``tiles``: what is counted depends on neither the products nor the blocks.

The error, relative to |h| |e| with the user's longest interest h, is at most (r + s P d + t K) G:

- r, of rounding the vectors: with unit roundoff u, 2 u for one product and 3 u^2 for three (Cauchy-Schwarz);
- s = 2^-23 for each of the P d products that are added up: tensor cores align what they add to the largest of it and
  cut off what is below its last bit, where fp32 would round;
- t = 2^-20 for each interest that the softmax goes through: ``exp`` is off by 2^-22 and its argument -x by 2^-23 x,
  where the weight is e^-x at the most; a product and a sum are off by 2^-24 each. A relative error of the weights moves
  a score by as much times sum_k w_k |a_k - score|, which is no more than 2 |h| |e|;
- G = ``tiles.steepest``, what a score makes of the errors of its dot products.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dist_imsr.evaluation import counting, tiles
from dist_imsr.evaluation.launches import Launch, Products, launch_on

_COPIES = 24  # bytes for each number of a stretch of items, while it is rounded
_WORD = 128  # bytes of memory for each word of pairs that are too close to tell: few of them are expected
# r of the above, with room for second order terms and for the norms' own rounding.
_ROUNDING: dict[Products, float] = {
    "ieee": 0.0,
    "tf32": 2.1 * 2.0**-11,
    "tf32x3": 3.1 * 2.0**-22,
    "bf16": 2.1 * 2.0**-9,
    "bf16x3": 3.1 * 2.0**-18,
}
_SUM, _SOFTMAX = 2.0**-23, 2.0**-20
_SHORTEST = 1e-15  # vectors count as no shorter, unless they are zero, for products that fall below fp32's range


class _Asked(NamedTuple):
    """Targets in the order of their users, and those users from the one with the most targets to the one with fewest.

    A block of users takes as many turns as its first one has targets, so users alike in that share a block.
    """

    order: torch.Tensor  # [A], each one's place among the targets that were given
    users: torch.Tensor  # [b], each one's place among the users that were given
    counts: torch.Tensor  # [b], the targets of each user
    first: torch.Tensor  # [b], where they begin
    rows: torch.Tensor  # [A], each one's user, its place among the users that were given
    low: torch.Tensor  # [A] float32, what ties at least
    high: torch.Tensor  # [A] float32, what ties at the most
    own: torch.Tensor  # [A], each target's own place in the shard, maybe outside of it

    def settle(self, shard: tiles.Shard, users: torch.Tensor, target: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """What pairs of a target and an item, ``[m]`` int64 each, add to the targets' counts, ``[m]`` float64."""
        return counting.settled(shard, users, self.rows[target], item, self.low[target], self.high[target])


def count_better(
    shard: tiles.Shard,
    users: torch.Tensor,
    owners: torch.Tensor,
    items: torch.Tensor,
    scores: torch.Tensor,
    ties: torch.Tensor,
    excluded: tiles.Pairs,
    launch: Launch | None = None,
) -> torch.Tensor:
    """How many of a shard's items beat each target; a tie counts as half.

    Args:
        shard: the items.
        users: ``[B, K, d]`` float32, interests of users who all have K of them.
        owners: ``[A]`` int64, each target's place among the users.
        items: ``[A]`` int64, the targets' places in the shard, maybe outside of it.
        scores: ``[A]`` float32, the targets' scores.
        ties: ``[A]`` float32, how close a score must be to tie.
        excluded: items that do not count for a user.
        launch: the kernel's parameters; they, and not the shard's precision, say how it multiplies. `launch_on` the
            device by default.

    Returns:
        ``[A]`` float64.
    """
    if not users.shape[1]:
        return counting.all_tied(len(shard.weight), owners, items, excluded)
    better = torch.zeros(len(owners), dtype=torch.float64, device=users.device)
    if not len(owners) or not len(shard.weight):
        return better
    asked, launch = _arrange(owners, items, scores, ties), launch or launch_on(users.device)
    counter = _Counter(shard, users, asked, launch)
    stretches = counter.stretches(0, len(shard.weight))
    while stretches:
        stretch = stretches.pop()
        twice, words, found = counter.count(stretch)
        if found > len(words):  # some had no room, so nothing of this stretch is taken
            stretches += counter.stretches(stretch.start, stretch.stop, 2 * triton.cdiv(found, len(words)))
            continue
        better += twice.double() / 2
        for part in words[:found].split(max(1, shard.tile // 64)):
            target, item = _pairs(part)
            better.index_add_(0, target, asked.settle(shard, users, target, item + stretch.start))
    for target, item in _excluded(shard, asked, len(users), excluded):
        better.index_add_(0, target, asked.settle(shard, users, target, item), alpha=-1)
    return torch.empty_like(better).index_copy_(0, asked.order, better)


def _arrange(owners: torch.Tensor, items: torch.Tensor, scores: torch.Tensor, ties: torch.Tensor) -> _Asked:
    """Sorts the targets by their users."""
    users, rows, counts = owners.unique(return_inverse=True, return_counts=True)
    counts, kept = counts.sort(descending=True)
    order = kept.argsort()[rows].argsort()
    low, high = (scores - ties)[order], (scores + ties)[order]
    return _Asked(order, users[kept], counts, counts.cumsum(0) - counts, owners[order], low, high, items[order])


class _Counter:
    """The kernel with all that stays the same from one stretch of items to the next."""

    def __init__(self, shard: tiles.Shard, users: torch.Tensor, asked: _Asked, launch: Launch) -> None:
        self.shard, self.asked, self.launch = shard, asked, launch
        vectors = users[asked.users]
        _, self.interests, dim = vectors.shape
        self.block_dims = min(launch.dims, max(16, triton.next_power_of_2(dim)))
        self.dim = triton.cdiv(dim, self.block_dims) * self.block_dims
        self.blocks = triton.cdiv(len(vectors), launch.users)
        self.vectors = self._rounded(vectors.flatten(0, 1), self.blocks * launch.users * self.interests)
        products = 2 * self.vectors.shape[1] - 1
        error = _ROUNDING[launch.products] + _SUM * products * self.dim + _SOFTMAX * self.interests
        self.bounds = error * tiles.steepest(shard.how, self.interests) * _lengths(vectors).amax(1)
        self.room = max(shard.memory // _WORD, len(asked.order))  # at the least for one item's

    def stretches(self, begin: int, end: int, parts: int = 1) -> list[range]:
        """Cuts a stretch of items into so many parts, or more for their copies' memory and to number all pairs."""
        most = min(self.shard.memory // (_COPIES * self.dim), torch.iinfo(torch.int32).max // len(self.asked.order))
        size = max(1, min(most, triton.cdiv(end - begin, parts)))
        return [range(first, min(first + size, end)) for first in range(begin, end, size)]

    def count(self, stretch: range) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Compares all targets with a stretch of items.

        Returns:
            ``[A]`` int32, 2 for each item that is above a target beyond doubt and 1 for each that ties; the pairs
            that are too close to tell, ``[room, 3]`` int32, as `_pairs` reads them; and how many of these rows there
            are, be it more than had room.
        """
        launch, asked, items = self.launch, self.asked, self.shard.weight[stretch.start : stretch.stop]
        steps = triton.cdiv(len(items), launch.items)
        norms = items.new_full((steps * launch.items,), torch.nan)  # with padding nothing compares
        norms[: len(items)] = _lengths(items)
        own = asked.own - stretch.start
        twice = torch.zeros(len(own), dtype=torch.int32, device=own.device)
        words = twice.new_empty(self.room, 3)
        found = twice.new_zeros(1)
        turns = triton.cdiv(steps, max(1, launch.programs // self.blocks))
        _count[self.blocks, triton.cdiv(steps, turns)](
            *(self.vectors, self._rounded(items, len(norms)), norms, self.bounds),
            *(asked.counts.int(), asked.first.int(), asked.low.float(), asked.high.float()),
            own.where((own >= 0) & (own < len(items)), -1).int(),
            *(twice, words, found, self.room, len(self.bounds), steps, self.interests, turns),
            **self.constants,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
        return twice, words, int(found)

    @property
    def constants(self) -> dict[str, object]:
        """What the kernel is compiled for."""
        return {
            "dim": self.dim,
            "parts": self.vectors.shape[1],
            "attentive": self.shard.how == "attentive" and self.interests > 1,
            "precision": "ieee" if self.launch.products == "ieee" else "tf32",
            "block_users": self.launch.users,
            "block_items": self.launch.items,
            "block_dims": self.block_dims,
        }

    def _rounded(self, vectors: torch.Tensor, rows: int) -> torch.Tensor:
        """Vectors ``[n, d]`` as sums of rounded ones, ``[rows, 1 or 2, dim]``; zero beyond n and d."""
        products = self.launch.products
        rest = vectors.new_zeros(rows, self.dim)
        rest[: len(vectors), : vectors.shape[1]] = vectors
        # Triton's interpreter, which runs on the CPU, cannot multiply bf16; the values are the same in fp32.
        dtype = torch.bfloat16 if products.startswith("bf16") and vectors.is_cuda else torch.float32
        parts = torch.empty(rows, 2 if products.endswith("x3") else 1, self.dim, dtype=dtype, device=rest.device)
        for part in parts.unbind(1):
            rounded = _round(rest, products)
            part.copy_(rounded)
            rest -= rounded
        return parts


def _round(values: torch.Tensor, products: Products) -> torch.Tensor:
    """The nearest numbers that the tensor cores take as they are: 8 significant bits of bf16, 11 of tf32."""
    if products == "ieee":
        return values
    if products.startswith("bf16"):
        return values.bfloat16().float()
    return ((values.view(torch.int32) + (1 << 12)) & -(1 << 13)).view(torch.float32)


def _lengths(vectors: torch.Tensor) -> torch.Tensor:
    """Lengths of vectors ``[..., d]``, none too short for its products but zero itself."""
    return vectors.norm(dim=-1).clamp_(min=_SHORTEST) * vectors.any(-1)


# Compiled once for all sizes but the dimension: sizes change from call to call.
@triton.jit(do_not_specialize=["room", "users", "steps", "interests", "turns"])
def _count(
    vectors: tl.tensor,  # [users in whole blocks, interests, parts, dim]
    weight: tl.tensor,  # [items in whole blocks, parts, dim]
    norms: tl.tensor,
    bounds: tl.tensor,
    counts: tl.tensor,
    first: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    own: tl.tensor,
    twice: tl.tensor,
    words: tl.tensor,  # [room, 3]: a target, an item, and a bit for each of the 32 from it on that is too close to tell
    found: tl.tensor,
    room: tl.tensor,
    users: tl.tensor,
    steps: tl.tensor,
    interests: tl.tensor,
    turns: tl.tensor,
    dim: tl.constexpr,
    parts: tl.constexpr,
    attentive: tl.constexpr,
    precision: tl.constexpr,
    block_users: tl.constexpr,
    block_items: tl.constexpr,
    block_dims: tl.constexpr,
) -> None:
    """A block of users against ``turns`` blocks of items."""
    start = tl.program_id(0) * block_users
    row, column, axis = tl.arange(0, block_users), tl.arange(0, block_items), tl.arange(0, block_dims)
    real = start + row < users
    count = tl.load(counts + start + row, mask=real, other=0)
    target = tl.load(first + start + row, mask=real, other=0)
    bound = tl.load(bounds + start + row, mask=real, other=0.0)
    most = tl.load(counts + start)  # users with fewer targets come later
    size: tl.constexpr = parts * dim
    mine = vectors + start.to(tl.int64) * interests * size + (row * interests * size)[:, None] + axis[None, :]
    begin = tl.program_id(1) * turns
    for step in range(begin, tl.minimum(begin + turns, steps)):
        theirs = weight + tl.cast(step, tl.int64) * block_items * size + (column * size)[:, None] + axis[None, :]
        best = tl.full([block_users, block_items], float("-inf"), tl.float32)
        total = tl.full([block_users, block_items], 0.0, tl.float32)
        weighted = tl.full([block_users, block_items], 0.0, tl.float32)
        for k in range(0, interests):
            agreement = tl.full([block_users, block_items], 0.0, tl.float32)
            for part in range(0, dim, block_dims):
                left, right = mine + k * size + part, theirs + part
                held, known = tl.load(left), tl.trans(tl.load(right))
                if parts == 2:
                    held_rest, known_rest = tl.load(left + dim), tl.trans(tl.load(right + dim))
                    agreement = tl.dot(held, known_rest, agreement, input_precision=precision)
                    agreement = tl.dot(held_rest, known, agreement, input_precision=precision)
                agreement = tl.dot(held, known, agreement, input_precision=precision)
            if attentive:
                # The softmax so far is scaled to the largest product so far; of old and new, one always weighs 1.
                above = agreement > best
                fade = tl.exp(-tl.abs(agreement - best))
                old, new = tl.where(above, fade, 1.0), tl.where(above, 1.0, fade)
                total = total * old + new
                weighted = weighted * old + new * agreement
            best = tl.maximum(best, agreement)
        score = weighted / total if attentive else best
        error = bound[:, None] * tl.load(norms + step * block_items + column)[None, :]
        lower, upper = score - error, score + error
        for turn in range(0, most):
            asking = turn < count
            floor = tl.load(low + target + turn, mask=asking, other=float("inf"))[:, None]
            ceiling = tl.load(high + target + turn, mask=asking, other=float("inf"))[:, None]
            itself = tl.load(own + target + turn, mask=asking, other=-1)[:, None] - step * block_items
            other = asking[:, None] & (column[None, :] != itself)
            hits = (lower >= floor).to(tl.int32) + (lower > ceiling).to(tl.int32)
            close = other & (hits != (upper >= floor).to(tl.int32) + (upper > ceiling).to(tl.int32))
            # One sum of both: a block's hits stay below 2^16. Sums of integers are the same in every order.
            sums = tl.sum(tl.where(close, 65536, tl.where(other, hits, 0)), 1)
            counted = sums & 65535
            tl.atomic_add(twice + target + turn, counted, mask=counted > 0, sem="relaxed")
            if tl.max(sums) >= 65536:  # seldom
                for word in tl.static_range(0, block_items, 32):
                    bits = tl.where(column // 32 == word // 32, 1 << column % 32, 0)
                    flags = tl.sum(tl.where(close, bits[None, :], 0), 1)
                    slot = tl.atomic_add(found + tl.zeros_like(flags), 1, mask=flags != 0, sem="relaxed")
                    place, kept = words + 3 * slot.to(tl.int64), (flags != 0) & (slot < room)
                    tl.store(place, target + turn, mask=kept)
                    tl.store(place + 1, step * block_items + word, mask=kept)
                    tl.store(place + 2, flags, mask=kept)


def _pairs(words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets ``[m]`` and items ``[m]``, int64, from rows of a target, an item, and a bit for each of 32 items."""
    bits = words[:, 2:] >> torch.arange(32, dtype=torch.int32, device=words.device) & 1
    row, bit = bits.nonzero().unbind(1)
    return words[row, 0].long(), words[row, 1] + bit


def _excluded(
    shard: tiles.Shard, asked: _Asked, users: int, excluded: tiles.Pairs
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of a target and an item, ``[m]`` each, that the kernel has counted and should not: it knows of no bars."""
    place = torch.full((users,), -1, device=asked.users.device)
    place[asked.users] = torch.arange(len(asked.users), device=place.device)
    rows, items = excluded.within(0, len(shard.weight))
    rows = place[rows]
    pairs = (rows[rows >= 0] * len(shard.weight) + items[rows >= 0]).unique()  # excluded twice, it has counted once
    for part in pairs.split(max(1, shard.tile // (2 * int(asked.counts[0])))):
        row, item = part // len(shard.weight), part % len(shard.weight)
        lengths = asked.counts[row]
        pair = torch.arange(len(row), device=row.device).repeat_interleave(lengths)
        target = torch.arange(len(pair), device=row.device) + (asked.first[row] - lengths.cumsum(0) + lengths)[pair]
        item = item[pair]
        counted = asked.own[target] != item
        yield target[counted], item[counted]
