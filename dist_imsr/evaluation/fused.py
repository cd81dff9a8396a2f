"""``counting.count_better`` for CUDA: one kernel multiplies, scores and compares, without storing scores in memory.

Tensor cores multiply rounded vectors, so scores have an error. The kernel counts only pairs whose score - error and
score + error are on the same side of a target's limits. It writes all other pairs to a list, and they are scored again
in float64, as in ``tiles``: counts depend neither on the products nor on the blocks.

The error, relative to |h| |e| with the user's longest interest h, is at most (r + s P d + t K) G:

- r for rounding the vectors: with unit roundoff u, 2 u for one product and 3 u^2 for three (Cauchy-Schwarz);
- s = 2^-23 for each of the P d products in a sum: tensor cores align the terms to the largest one and truncate the bits
  below its last one, where fp32 would round;
- t = 2^-20 for each interest in the softmax: ``exp`` has an error of 2^-22 and its argument -x of 2^-23 x, with a
  weight of at most e^-x; a product and a sum have 2^-24 each. A relative error of the weights changes a score by at
  most that error times sum_k w_k |a_k - score|, which is at most 2 |h| |e|;
- G = ``tiles.error_factor``, the effect of the errors of the dot products on a score.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton

from dist_imsr.evaluation import counting, tiles
from dist_imsr.evaluation.count_kernel import count_kernel, unpack_pairs
from dist_imsr.evaluation.launches import Launch, Products, launch_on

_COPIES = 24  # bytes for each number of a chunk of items, while it is rounded
_WORD = 128  # bytes of the memory budget for each word of close pairs, of which few are expected
# r above, with a margin for second-order terms and for rounding the norms.
_ROUNDING: dict[Products, float] = {
    "ieee": 0.0,
    "tf32": 2.1 * 2.0**-11,
    "tf32x3": 3.1 * 2.0**-22,
    "bf16": 2.1 * 2.0**-9,
    "bf16x3": 3.1 * 2.0**-18,
}
_SUM, _SOFTMAX = 2.0**-23, 2.0**-20
_SHORTEST = 1e-15  # the least norm of a nonzero vector in bounds, for products that underflow in fp32


class _SortedTargets(NamedTuple):
    """Targets sorted by user, and users by their number of targets, descending.

    The kernel loops over a block of users as often as its first user has targets, so users with equally many targets
    share a block.
    """

    order: torch.Tensor  # [A], index of each target in the input
    users: torch.Tensor  # [b], index of each user in the input
    counts: torch.Tensor  # [b], the number of targets of each user
    first: torch.Tensor  # [b], index of each user's first target
    rows: torch.Tensor  # [A], index of each target's user in the input
    low: torch.Tensor  # [A] float32, the lowest score that ties
    high: torch.Tensor  # [A] float32, the highest score that ties
    own: torch.Tensor  # [A], index of each target in the shard, possibly outside of it

    def count_exactly(
        self, shard: tiles.Shard, users: torch.Tensor, target: torch.Tensor, item: torch.Tensor
    ) -> torch.Tensor:
        """`counting.count_exactly` for pairs of a target and an item, ``[m]`` int64 each."""
        return counting.count_exactly(shard, users, self.rows[target], item, self.low[target], self.high[target])


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
        users: ``[B, K, d]`` float32, interests of users with K interests each.
        owners: ``[A]`` int64, index of each target's user.
        items: ``[A]`` int64, index of each target in the shard, possibly outside of it.
        scores: ``[A]`` float32, scores of the targets.
        ties: ``[A]`` float32, the largest difference of scores that tie.
        excluded: pairs of a user's index and an item that does not count for the user.
        launch: the kernel's parameters, which replace the shard's precision; `launch_on` the device by default.

    Returns:
        ``[A]`` float64.
    """
    if not users.shape[1]:
        return counting.all_tied(len(shard.weight), owners, items, excluded)
    better = torch.zeros(len(owners), dtype=torch.float64, device=users.device)
    if not len(owners) or not len(shard.weight):
        return better
    targets, launch = _sort_targets(owners, items, scores, ties), launch or launch_on(users.device)
    counter = _Counter(shard, users, targets, launch)
    chunks = counter.chunks(0, len(shard.weight))
    while chunks:
        chunk = chunks.pop()
        twice, words, found = counter.count(chunk)
        if found > len(words):  # the list was too short: count this chunk again in smaller ones
            chunks += counter.chunks(chunk.start, chunk.stop, 2 * triton.cdiv(found, len(words)))
            continue
        better += twice.double() / 2
        for part in words[:found].split(max(1, shard.tile_size // 64)):
            target, item = unpack_pairs(part)
            better.index_add_(0, target, targets.count_exactly(shard, users, target, item + chunk.start))
    for target, item in _excluded(shard, targets, len(users), excluded):
        better.index_add_(0, target, targets.count_exactly(shard, users, target, item), alpha=-1)
    return torch.empty_like(better).index_copy_(0, targets.order, better)


def _sort_targets(
    owners: torch.Tensor, items: torch.Tensor, scores: torch.Tensor, ties: torch.Tensor
) -> _SortedTargets:
    users, rows, counts = owners.unique(return_inverse=True, return_counts=True)
    counts, by_count = counts.sort(descending=True)
    order = by_count.argsort()[rows].argsort()
    return _SortedTargets(
        order=order,
        users=users[by_count],
        counts=counts,
        first=counts.cumsum(0) - counts,
        rows=owners[order],
        low=(scores - ties)[order],
        high=(scores + ties)[order],
        own=items[order],
    )


class _Counter:
    """The kernel with the arguments that are the same for all chunks of items."""

    def __init__(self, shard: tiles.Shard, users: torch.Tensor, targets: _SortedTargets, launch: Launch) -> None:
        self.shard, self.targets, self.launch = shard, targets, launch
        vectors = users[targets.users]
        _, self.interests, dim = vectors.shape
        self.block_dims = min(launch.dims, max(16, triton.next_power_of_2(dim)))
        self.dim = triton.cdiv(dim, self.block_dims) * self.block_dims
        self.blocks = triton.cdiv(len(vectors), launch.users)
        self.vectors = self._rounded(vectors.flatten(0, 1), self.blocks * launch.users * self.interests)
        products = 2 * self.vectors.shape[1] - 1
        error = _ROUNDING[launch.products] + _SUM * products * self.dim + _SOFTMAX * self.interests
        self.bounds = error * tiles.error_factor(shard.how, self.interests) * _lengths(vectors).amax(1)
        self.room = max(shard.memory // _WORD, len(targets.order))  # at least enough for a chunk of one item

    def chunks(self, begin: int, end: int, parts: int = 1) -> list[range]:
        """Splits items into at least ``parts`` chunks that fit into memory, and whose pairs fit into int32."""
        most = min(self.shard.memory // (_COPIES * self.dim), torch.iinfo(torch.int32).max // len(self.targets.order))
        size = max(1, min(most, triton.cdiv(end - begin, parts)))
        return [range(first, min(first + size, end)) for first in range(begin, end, size)]

    def count(self, chunk: range) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Compares all targets with a chunk of items.

        Returns:
            ``[A]`` int32, 2 for each item that is certainly above a target and 1 for each certain tie; the pairs that
            are too close, ``[room, 3]`` int32, for `unpack_pairs`; and the number of these rows, possibly more than
            ``room``.
        """
        launch, targets, items = self.launch, self.targets, self.shard.weight[chunk.start : chunk.stop]
        steps = triton.cdiv(len(items), launch.items)
        norms = items.new_full((steps * launch.items,), torch.nan)  # comparisons with padding are false
        norms[: len(items)] = _lengths(items)
        own = targets.own - chunk.start
        twice = torch.zeros(len(own), dtype=torch.int32, device=own.device)
        words = twice.new_empty(self.room, 3)
        found = twice.new_zeros(1)
        turns = triton.cdiv(steps, max(1, launch.programs // self.blocks))
        count_kernel[self.blocks, triton.cdiv(steps, turns)](
            vectors=self.vectors,
            weight=self._rounded(items, len(norms)),
            norms=norms,
            bounds=self.bounds,
            counts=targets.counts.int(),
            first=targets.first.int(),
            low=targets.low.float(),
            high=targets.high.float(),
            own=own.where((own >= 0) & (own < len(items)), -1).int(),
            twice=twice,
            words=words,
            found=found,
            room=self.room,
            users=len(self.bounds),
            steps=steps,
            interests=self.interests,
            turns=turns,
            **self.constants,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
        return twice, words, int(found)

    @property
    def constants(self) -> dict[str, object]:
        """The kernel's compile-time arguments."""
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
        """Splits vectors ``[n, d]`` into sums of rounded ones, ``[rows, 1 or 2, dim]``, padded with zeros."""
        products = self.launch.products
        rest = vectors.new_zeros(rows, self.dim)
        rest[: len(vectors), : vectors.shape[1]] = vectors
        # Triton's interpreter on the CPU cannot multiply bf16; the values are the same in fp32.
        dtype = torch.bfloat16 if products.startswith("bf16") and vectors.is_cuda else torch.float32
        parts = torch.empty(rows, 2 if products.endswith("x3") else 1, self.dim, dtype=dtype, device=rest.device)
        for part in parts.unbind(1):
            rounded = _round(rest, products)
            part.copy_(rounded)
            rest -= rounded
        return parts


def _round(values: torch.Tensor, products: Products) -> torch.Tensor:
    """Rounds to the inputs of the tensor cores: 8 significant bits for bf16, 11 for tf32."""
    if products == "ieee":
        return values
    if products.startswith("bf16"):
        return values.bfloat16().float()
    return ((values.view(torch.int32) + (1 << 12)) & -(1 << 13)).view(torch.float32)


def _lengths(vectors: torch.Tensor) -> torch.Tensor:
    """Norms of vectors ``[..., d]``, at least `_SHORTEST` unless the vector is zero."""
    return vectors.norm(dim=-1).clamp_(min=_SHORTEST) * vectors.any(-1)


def _excluded(
    shard: tiles.Shard, targets: _SortedTargets, users: int, excluded: tiles.Pairs
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Excluded pairs of a target and an item, ``[m]`` each; the kernel counts them like all others."""
    place = torch.full((users,), -1, device=targets.users.device)
    place[targets.users] = torch.arange(len(targets.users), device=place.device)
    rows, items = excluded.within(0, len(shard.weight))
    rows = place[rows]
    pairs = (rows[rows >= 0] * len(shard.weight) + items[rows >= 0]).unique()  # without duplicates
    for part in pairs.split(max(1, shard.tile_size // (2 * int(targets.counts[0])))):
        row, item = part // len(shard.weight), part % len(shard.weight)
        lengths = targets.counts[row]
        pair = torch.arange(len(row), device=row.device).repeat_interleave(lengths)
        target = torch.arange(len(pair), device=row.device) + (targets.first[row] - lengths.cumsum(0) + lengths)[pair]
        item = item[pair]
        counted = targets.own[target] != item
        yield target[counted], item[counted]
