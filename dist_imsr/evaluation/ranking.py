"""The exact rank of each target over the whole sharded catalogue."""

import math
from typing import NamedTuple

import torch
from torch.nn import functional

from dist_imsr.distributed.catalogue import Catalogue
from dist_imsr.distributed.topology import Topology
from dist_imsr.model.interests import Interests
from dist_imsr.model.scoring import Score, score

_TILE_SCORES = {"cpu": 1 << 18, "cuda": 1 << 26}  # dot products at a time: what a core's cache holds, or a device fills


class _Block(NamedTuple):
    """A rank's users and targets."""

    vectors: torch.Tensor  # [S, d], user after user; S = sum K_u
    counts: torch.Tensor  # [B], K_u
    owners: torch.Tensor  # [A], each target's user
    ids: torch.Tensor  # [A]
    scores: torch.Tensor  # [A]


def target_ranks(
    catalogue: Catalogue,
    topology: Topology,
    interests: Interests,
    targets: torch.Tensor,
    owners: torch.Tensor,
    embeddings: torch.Tensor,
    items: int,
    how: Score = "attentive",
    most: int | None = None,
) -> torch.Tensor:
    """Ranks targets among all known items by f_score of Eq. 2; collective.

    Interests travel and items never do: each rank counts the rows of its own shard that beat each target of any rank,
    and the counts are summed. A rank is 1 + (items that score higher) + (other items that tie) / 2. Who asks only for
    the first places spares most of the work: a target that ``most`` items beat is not compared with the rest.

    Args:
        catalogue: the sharded table.
        topology: this rank's place.
        interests: of this rank's B users, ``[B, K, d]``.
        targets: ``[A]`` int64 item ids.
        owners: ``[A]`` int64, the place among the B users whose target it is.
        embeddings: ``[A, d]``, the targets' rows.
        items: ids below it are ranked.
        how: the scoring function.
        most: ranks up to it are exact, and others are some number above it; all are exact without it.

    Returns:
        ``[A]`` float64.
    """
    own = Interests(interests.vectors[owners], interests.mask[owners])
    scores = score(own, embeddings.unsqueeze(1), how).squeeze(1)
    mine = _Block(interests.vectors[interests.mask], interests.mask.sum(1), owners, targets, scores)
    known = range(catalogue.rows.start, min(catalogue.rows.stop, items))
    world = _share(topology, mine)
    beaten = torch.zeros(
        topology.world_size, max(len(block.ids) for block in world), dtype=torch.float64, device=scores.device
    )
    for row, block in zip(beaten, world, strict=True):
        row[: len(block.ids)] = _count(block, catalogue.weight, known, how, most or math.inf)
    return 1 + topology.sum(beaten)[topology.rank, : len(targets)]


def _count(block: _Block, weight: torch.Tensor, known: range, how: Score, most: float) -> torch.Tensor:
    """How many rows of a shard beat each target of a block, ``[A]`` float64; a tie counts as half.

    Users with equally many interests are scored together, so that nothing is padded.
    """
    beaten = torch.zeros(len(block.ids), dtype=torch.float64, device=weight.device)
    first = block.counts.cumsum(0) - block.counts
    for count in block.counts[block.owners].unique().tolist():
        asked = (block.counts[block.owners] == count).nonzero().squeeze(1)
        slot = torch.arange(count, device=asked.device)
        compared, stop = math.inf, known.start
        while stop < known.stop and len(asked):
            if len(asked) <= compared / 2:
                compared = len(asked)
                users, owners = block.owners[asked].unique(return_inverse=True)
                vectors = block.vectors[first[users].unsqueeze(1) + slot]  # [b, count, d]
                ids, wanted = block.ids[asked], block.scores[asked].unsqueeze(1)
                tile = max(1, _TILE_SCORES[weight.device.type] // (len(users) * max(count, 1)))
            start, stop = stop, min(stop + tile, known.stop)
            scores = _scores(vectors, weight[start - known.start : stop - known.start], how)
            # Many targets may share a block's users: compare them in parts of the tile's own size.
            for part in torch.arange(len(asked), device=asked.device).split(len(users)):
                others = scores[owners[part]]
                inside = ((ids[part] >= start) & (ids[part] < stop)).nonzero().squeeze(1)
                others[inside, ids[part][inside] - start] = -torch.inf  # a target does not beat itself
                beaten[asked[part]] += (others > wanted[part]).sum(1) + 0.5 * (others == wanted[part]).sum(1)
            left = beaten[asked] < most
            if left.sum() <= compared / 2:
                asked = asked[left]
    return beaten


def _scores(vectors: torch.Tensor, items: torch.Tensor, how: Score) -> torch.Tensor:
    """`score` without padding and in few passes over memory: ``[b, k, d]``, ``[n, d]`` to ``[b, n]``."""
    users, count, dim = vectors.shape
    if count == 0:
        return items.new_zeros(users, len(items))
    agreement = (vectors.reshape(-1, dim) @ items.T).view(users, count, -1)
    best = agreement.amax(1)
    if how == "max" or count == 1:
        return best
    weights = (agreement - best.unsqueeze(1)).exp_()
    total = weights.sum(1)
    return weights.mul_(agreement).sum(1).div_(total)


def _share(topology: Topology, mine: _Block) -> list[_Block]:
    """Gives every rank the users and targets of all ranks; what travels is as long as the longest rank's."""
    lengths = topology.gather(torch.tensor([len(column) for column in mine], device=mine.ids.device))  # [W, 5]
    longest = lengths.amax(0).tolist()

    def gathered(column: torch.Tensor, size: int) -> torch.Tensor:
        return topology.gather(functional.pad(column, [0, 0] * (column.ndim - 1) + [0, size - len(column)]))

    columns = [gathered(column, size) for column, size in zip(mine, longest, strict=True)]
    return [
        _Block(*(column[rank, :size] for column, size in zip(columns, sizes, strict=True)))
        for rank, sizes in enumerate(lengths.tolist())
    ]
