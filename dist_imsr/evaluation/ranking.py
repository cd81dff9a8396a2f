"""Exact ranks and best items over the whole sharded catalogue: interests travel, items never do."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch.nn.functional import pad
from torchrec import JaggedTensor

from dist_imsr import devices
from dist_imsr.checks import require
from dist_imsr.data.jagged import owners_of
from dist_imsr.distributed.catalogue import Catalogue
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.counting import count_better
from dist_imsr.evaluation.selection import best_items
from dist_imsr.evaluation.tiles import TIE, Pairs, Shard
from dist_imsr.model.interests import Interests
from dist_imsr.model.scoring import Score, score
from dist_imsr.phases import Phase

_STRETCH = 128  # rows of the first one, about


@dataclass
class RankingConfig:
    """How the catalogue is ranked; no key changes what a rank is.

    Args:
        precision: of the matrix products. Ranks are the same in both: pairs that products cannot tell apart are scored
            again in float64. On CUDA it says how the best items are found; ranks are counted from three bf16 products
            whatever it says, which is both faster than fp32 and exact enough.
        memory: MiB that a rank may hold of scores at a time.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    memory: int = 256

    def __post_init__(self) -> None:
        require(self.memory >= 1, "ranking.memory", self.memory, "at least 1 MiB")


class _Block(NamedTuple):
    """Users, their targets, and what they must not get."""

    vectors: torch.Tensor  # [S, d], user after user; S = sum K_u
    counts: torch.Tensor  # [B], K_u
    targets: torch.Tensor  # [A, 2], a user and an item
    levels: torch.Tensor  # [A, 2], its score, and how close another must be to tie
    seen: torch.Tensor  # [n, 2], a user and an item that this user must not get


class Ranker:
    """Ranks the sharded catalogue; every method is collective.

    A rank is 1 + (items that score higher) + (other items that tie) / 2. Scores tie when they differ by no more than
    2^-20 |h| |e|, with the user's longest interest h and the target e: float sums in another order, of another tile or
    another number of ranks, differ by as much.

    Args:
        catalogue: the sharded table.
        topology: this rank's place.
        how: f_score of Eq. 2.
        config: precision and memory.
    """

    def __init__(self, catalogue: Catalogue, topology: Topology, how: Score, config: RankingConfig) -> None:
        self.catalogue, self.topology, self.how, self.config = catalogue, topology, how, config
        self._count_better = count_better
        if devices.is_cuda(topology.device):
            from dist_imsr.evaluation import fused  # asks for Triton, which machines without CUDA need not have

            self._count_better = fused.count_better

    @Phase("ranking")
    def ranks(
        self,
        interests: Interests,
        targets: JaggedTensor,
        embeddings: torch.Tensor,
        items: int,
        most: int | None = None,
        seen: JaggedTensor | None = None,
    ) -> torch.Tensor:
        """The rank of each target among all known items.

        Each rank counts the rows of its own shard that beat each target of any rank, and the counts are summed. Who
        asks only for the first places spares most of the work: the shards are read in stretches, each about thrice as
        long as all before it, and a target that ``most`` items of the world beat is not compared with the next.

        Args:
            interests: of this rank's B users, ``[B, K, d]``.
            targets: B sequences of item ids.
            embeddings: of their values, ``[A, d]``.
            items: ids below it are ranked.
            most: ranks up to it are exact, and others are some number above it; all are exact without it.
            seen: B sequences of item ids that are not ranked for a user; a target among them has an infinite rank.

        Returns:
            One rank for each value of ``targets``, float64; 1 is the best.
        """
        owners = owners_of(targets)
        own = Interests(interests.vectors[owners], interests.mask[owners])
        scores = score(own, embeddings.unsqueeze(1), self.how).squeeze(1)
        longest = pad(interests.vectors.norm(dim=-1), (0, 1)).amax(1)  # zero for a user without any
        levels = torch.stack([scores, TIE * longest[owners] * embeddings.norm(dim=1)], 1)
        mine = _block(interests, seen)._replace(targets=_pairs(targets), levels=levels)
        world, _, first = _share(self.topology, mine)
        by, wanted = world.targets.T
        better = torch.zeros(len(by), dtype=torch.float64, device=by.device)
        for stretch in self._stretches(items, whole=most is None):
            found, open_ = torch.zeros_like(better), better < (torch.inf if most is None else most)
            asking = torch.zeros_like(world.counts, dtype=torch.bool).index_fill_(0, by[open_], True)
            for _, places, vectors, excluded in group_by_num_interests(world, asking, stretch):
                place = places[by]
                asked = (open_ & (place >= 0)).nonzero().squeeze(1)
                level, tie = world.levels[asked].T
                found[asked] = self._count_better(
                    stretch, vectors, place[asked], wanted[asked] - stretch.first, level, tie, excluded
                )
            better += self.topology.sum(found)
        ranks = 1 + better[first : first + len(owners)]
        if seen is not None:
            met = torch.isin(*(user * items + item for user, item in (mine.targets.T, mine.seen.T)))
            ranks[met] = torch.inf
        return ranks

    @Phase("ranking")
    def best(
        self, interests: Interests, items: int, top: int, seen: JaggedTensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best N of all known items for each user.

        Args:
            interests: of this rank's B users, ``[B, K, d]``.
            items: ids below it are ranked.
            top: N.
            seen: B sequences of item ids that a user must not get.

        Returns:
            Scores ``[B, N]`` in descending order, and ids ``[B, N]`` int64; of equal scores the smaller id comes first.
            -inf and -1 where there are no more items.
        """
        mine = _block(interests, seen)
        world, sizes, _ = _share(self.topology, mine)
        scores = interests.vectors.new_empty(len(world.counts), top)
        ids = torch.empty(scores.shape, dtype=torch.int64, device=scores.device)
        (shard,) = self._stretches(items, whole=True)
        for users, _, vectors, excluded in group_by_num_interests(
            world, torch.ones_like(world.counts, dtype=torch.bool), shard
        ):
            scores[users], ids[users] = best_items(shard, vectors, top, excluded)
        # Every rank has a list for each user of the world; a user's own rank gets them all and merges them.
        lists = self.topology.world_size
        arrived = [column.new_empty(lists * len(mine.counts), top) for column in (scores, ids)]
        for column, here in zip((scores, ids), arrived, strict=True):
            dist.all_to_all_single(here, column, [len(mine.counts)] * lists, sizes)
        scores, ids = (here.view(lists, -1, top).transpose(0, 1).flatten(1) for here in arrived)
        ids, order = ids.sort(1)
        scores, kept = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
        return scores[:, :top], ids.gather(1, kept[:, :top])

    def _stretches(self, items: int, whole: bool) -> list[Shard]:
        """This rank's known rows in parts: as many on every rank, whatever it holds."""
        rows = self.catalogue.rows
        known = self.catalogue.flushed_weight()[: max(0, min(rows.stop, items) - rows.start)]
        parts = 1 if whole else 1 + max(0, int(math.log(max(1, items / self.topology.world_size / _STRETCH), 4)))
        edges = [0, *(len(known) >> 2 * part for part in reversed(range(parts)))]
        settings = self.how, self.config.precision, self.config.memory << 20
        return [Shard(known[begin:end], rows.start + begin, *settings) for begin, end in itertools.pairwise(edges)]


def _block(interests: Interests, seen: JaggedTensor | None) -> _Block:
    """Users without targets."""
    nothing = torch.empty(0, 2, dtype=torch.int64, device=interests.vectors.device)
    return _Block(
        *(interests.vectors[interests.mask], interests.mask.sum(1), nothing, interests.vectors.new_empty(0, 2)),
        nothing if seen is None else _pairs(seen),
    )


def group_by_num_interests(
    block: _Block, asking: torch.Tensor, shard: Shard
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, Pairs]]:
    """Those who ask, together where they have equally many interests, and no more of them than a tile should hold.

    Yields:
        Users ``[b]``; everybody's place among them, or -1, ``[B]``; their interests ``[b, K, d]``; what is excluded, by
        their places among these users.
    """
    first = block.counts.cumsum(0) - block.counts
    for count in block.counts[asking].unique().tolist():
        slot = torch.arange(count, device=first.device)
        for users in (asking & (block.counts == count)).nonzero().squeeze(1).split(shard.users(count)):
            places = torch.full_like(block.counts, -1)
            places[users] = torch.arange(len(users), device=users.device)
            rows = places[block.seen[:, 0]]
            excluded = Pairs(rows[rows >= 0], block.seen[rows >= 0, 1] - shard.first)
            yield users, places, block.vectors[first[users].unsqueeze(1) + slot], excluded


def _share(topology: Topology, mine: _Block) -> tuple[_Block, list[int], int]:
    """All ranks' blocks as one.

    Returns:
        The block, how many users each rank has in it, and where this rank's targets begin.
    """
    parts = [_Block(*columns) for columns in topology.gather_jagged(mine)]
    users = [len(part.counts) for part in parts]
    for first, part in zip(itertools.accumulate(users, initial=0), parts, strict=False):
        part.targets[:, 0] += first
        part.seen[:, 0] += first
    first_target = sum(len(part.targets) for part in parts[: topology.rank])
    return _Block(*map(torch.cat, zip(*parts, strict=True))), users, first_target


def _pairs(sequences: JaggedTensor) -> torch.Tensor:
    """Each value beside the place of its sequence, ``[n, 2]`` int64."""
    return torch.stack([owners_of(sequences), sequences.values()], 1)
