"""The exact rank of each target over the whole sharded catalogue."""

from typing import NamedTuple

import torch
from torch.nn import functional

from dist_imsr.distributed.catalogue import Catalogue
from dist_imsr.distributed.topology import Topology
from dist_imsr.model.interests import Interests
from dist_imsr.model.scoring import Score, score

_TILE_SCORES = 1 << 23  # scores of a block of users for a tile of items, over all interests


class _World(NamedTuple):
    """A block of users and targets of all ranks, padded to the largest rank's."""

    interests: Interests  # [W, B, K, d]
    owners: torch.Tensor  # [W, A], each target's user
    ids: torch.Tensor  # [W, A], -1 for padding
    scores: torch.Tensor  # [W, A]


def target_ranks(
    catalogue: Catalogue,
    topology: Topology,
    interests: Interests,
    targets: torch.Tensor,
    owners: torch.Tensor,
    embeddings: torch.Tensor,
    items: int,
    how: Score = "attentive",
) -> torch.Tensor:
    """Ranks targets among all known items by f_score of Eq. 2; collective.

    Interests travel and items never do: each rank counts the rows of its own shard that beat each target of any rank,
    and the counts are summed. A rank is 1 + (items that score higher) + (other items that tie) / 2.

    Args:
        catalogue: the sharded table.
        topology: this rank's place.
        interests: of this rank's B users, ``[B, K, d]``.
        targets: ``[A]`` int64 item ids.
        owners: ``[A]`` int64, the place among the B users whose target it is.
        embeddings: ``[A, d]``, the targets' rows.
        items: ids below it are ranked.
        how: the scoring function.

    Returns:
        ``[A]`` float64.
    """
    own = Interests(interests.vectors[owners], interests.mask[owners])
    scores = score(own, embeddings.unsqueeze(1), how).squeeze(1)
    world = _share(topology, interests, targets, owners, scores)
    known = range(catalogue.rows.start, min(catalogue.rows.stop, items))
    beaten = torch.zeros(world.ids.shape, dtype=torch.float64, device=scores.device)
    for rank in range(topology.world_size):
        one = _World(
            Interests(world.interests.vectors[rank], world.interests.mask[rank]), *(x[rank] for x in world[1:])
        )
        beaten[rank] = _count(one, catalogue.weight, known, how)
    return 1 + topology.sum(beaten)[topology.rank, : len(targets)]


def _count(block: _World, weight: torch.Tensor, known: range, how: Score) -> torch.Tensor:
    """How many rows of a shard beat each target of a block, ``[A]``; a tie counts as half."""
    beaten = torch.zeros(block.ids.shape, dtype=torch.float64, device=weight.device)
    tile = max(1, _TILE_SCORES // max(1, block.interests.mask.numel()))
    wanted = block.scores.unsqueeze(1)
    for start in range(known.start, known.stop, tile):
        stop = min(start + tile, known.stop)
        scores = score(block.interests, weight[start - known.start : stop - known.start], how)
        # A few thousand targets share a block's users: compare them in parts of the tile's own size.
        for part in torch.arange(len(beaten), device=weight.device).split(max(1, len(block.interests.mask))):
            mine = scores[block.owners[part]]
            other = torch.arange(start, stop, device=weight.device) != block.ids[part].unsqueeze(1)
            beaten[part] += ((mine > wanted[part]) & other).sum(1) + 0.5 * ((mine == wanted[part]) & other).sum(1)
    return beaten


def _share(
    topology: Topology, interests: Interests, ids: torch.Tensor, owners: torch.Tensor, scores: torch.Tensor
) -> _World:
    """Gives every rank the users and targets of all ranks."""
    users, slots, _dim = interests.vectors.shape
    sizes = topology.gather(torch.tensor([users, slots, len(ids)], device=scores.device)).amax(0).tolist()
    more_users, more_slots, more_targets = (
        size - have for size, have in zip(sizes, (users, slots, len(ids)), strict=True)
    )

    def gathered(tensor: torch.Tensor, *padding: int, value: float = 0) -> torch.Tensor:
        return topology.gather(functional.pad(tensor, padding, value=value))

    return _World(
        Interests(
            gathered(interests.vectors, 0, 0, 0, more_slots, 0, more_users),
            gathered(interests.mask.to(torch.uint8), 0, more_slots, 0, more_users).bool(),
        ),
        gathered(owners, 0, more_targets),
        gathered(ids, 0, more_targets, value=-1),
        gathered(scores, 0, more_targets),
    )
