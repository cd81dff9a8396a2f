"""Exact ranks and best items over the whole sharded catalogue: interests are sent to the items' ranks."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch.nn.functional import pad
from torchrec import JaggedTensor

from dist_imsr import devices
from dist_imsr.checks import require
from dist_imsr.data.jagged import longest, owners_of
from dist_imsr.data.jagged import pad as padded
from dist_imsr.distributed.catalogue import Catalogue
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.counting import count_better
from dist_imsr.evaluation.metrics import Ranks
from dist_imsr.evaluation.seen import SeenItems
from dist_imsr.evaluation.selection import best_items
from dist_imsr.evaluation.tiles import TIE, Pairs, Shard
from dist_imsr.model.interests import Interests
from dist_imsr.model.scoring import Scoring, score
from dist_imsr.phases import Phase

_FIRST_CHUNK = 128  # items per rank in the first chunk, approximately
_COPIED = 128 << 20  # bytes of a part of a table in host memory; two parts are on the device at a time


@dataclass
class RankingConfig:
    """How the catalogue is ranked; no key changes the result.

    Args:
        precision: precision of the matrix products. Ranks are the same in both, since close scores are compared in
            float64. On CUDA it applies to the best items only; ranks are always counted from three bf16 products,
            which is faster than fp32 and precise enough.
        memory: MiB per rank for scores.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    memory: int = 256

    def __post_init__(self) -> None:
        require(self.memory >= 1, "ranking.memory", self.memory, "at least 1 MiB")


class _Block(NamedTuple):
    """Users with their targets and excluded items."""

    vectors: torch.Tensor  # [S, d], user after user; S = sum K_u
    counts: torch.Tensor  # [B], K_u
    targets: torch.Tensor  # [A, 2], a user and an item
    levels: torch.Tensor  # [A, 2], the target's score, and the largest difference of scores that tie
    seen: torch.Tensor  # [n, 2], a user and an item that is excluded for this user


class Ranker:
    """Ranks the sharded catalogue; every method is collective.

    A rank is 1 + (items that score higher) + (other items that tie) / 2. Scores tie if they differ by at most 2^-20 |q|
    |e|, with the user's longest query q and the target's row e: float sums in another order, as in another tile or with
    another number of ranks, differ by as much.

    Args:
        catalogue: the sharded table.
        topology: this rank's place.
        scoring: f_score of Eq. 2.
        config: precision and memory.
    """

    def __init__(self, catalogue: Catalogue, topology: Topology, scoring: Scoring, config: RankingConfig) -> None:
        self.catalogue, self.topology, self.scoring, self.config = catalogue, topology, scoring, config
        self.how = scoring.how
        self._count_better = count_better
        if devices.is_cuda(topology.device):
            from dist_imsr.evaluation import fused  # needs Triton, which machines without CUDA may not have

            self._count_better = fused.count_better

    def ranks(
        self,
        interests: Interests,
        targets: JaggedTensor,
        embeddings: torch.Tensor,
        items: int,
        exact_top: int | None = None,
        seen: SeenItems | None = None,
    ) -> Ranks:
        """The rank of each target among all known items, and among those that the user has not met.

        Each rank counts the items of its own shard that are better than each target of any rank, and the counts are
        summed. ``exact_top`` saves most of the work: the shards are processed in chunks, each about three times as long
        as all before it, and a target with ``exact_top`` better items is not compared with the next chunk. Items that a
        user has met are left out of these counts; the user's own rank compares them.

        Args:
            interests: this rank's B users, ``[B, K, d]``.
            targets: B sequences of item ids.
            embeddings: ``[A, row width]``, of the values of ``targets``.
            items: the number of known items; smaller ids are ranked.
            exact_top: ranks up to this one are exact, larger ones are some number above it; None for all exact.
            seen: the items that each user has met; None if they are not known.

        Returns:
            The rank of each value of ``targets``.
        """
        bonuses = [None if seen is None else seen.bonus]
        [ranks] = self.ranks_of_each(interests, targets, embeddings, items, exact_top, seen, bonuses)
        return ranks

    @Phase("ranking")
    def ranks_of_each(
        self,
        interests: Interests,
        targets: JaggedTensor,
        embeddings: torch.Tensor,
        items: int,
        exact_top: int | None,
        seen: SeenItems | None,
        bonuses: Sequence[torch.Tensor | None],
    ) -> list[Ranks]:
        """The ranks with each of several bonuses, from one pass over the catalogue.

        Args:
            interests: as in `ranks`, like ``targets``, ``embeddings``, ``items`` and ``exact_top``.
            seen: as in `ranks`; its own bonus is not read.
            bonuses: at least one, of ``seen.items``; None for none.
        """
        owners, queries = owners_of(targets), self.scoring.queries(interests)
        own = Interests(queries.vectors[owners], queries.mask[owners])
        scores = score(own, embeddings.unsqueeze(1), self.how).squeeze(1)
        among_seen = None if seen is None else seen.place_of(targets)
        each = [scores.double() + _at(bonus, among_seen) for bonus in bonuses]
        norms = pad(queries.vectors.norm(dim=-1), (0, 1)).amax(1)  # zero for a user without interests
        tie = TIE * norms[owners] * embeddings.norm(dim=1)
        levels = torch.cat([torch.stack([level.to(tie.dtype), tie], 1) for level in each])
        pairs = _pairs(targets).repeat(len(bonuses), 1)
        mine = _block(queries, None if seen is None else seen.items)._replace(targets=pairs, levels=levels)
        world, _, first = _share(self.topology, mine)
        user_of_target, item_of_target = world.targets.T
        better = torch.zeros(len(user_of_target), dtype=torch.float64, device=user_of_target.device)
        for chunk in self._chunks(items, whole=exact_top is None):
            count, undecided = torch.zeros_like(better), better < (torch.inf if exact_top is None else exact_top)
            active = torch.zeros_like(world.counts, dtype=torch.bool).index_fill_(0, user_of_target[undecided], True)
            for shard in self._on_device(chunk):
                for _, places, vectors, excluded in group_by_num_interests(world, active, shard):
                    place = places[user_of_target]
                    selected = (undecided & (place >= 0)).nonzero().squeeze(1)
                    level, within = world.levels[selected].T
                    count[selected] += self._count_better(
                        shard, vectors, place[selected], item_of_target[selected] - shard.first, level, within, excluded
                    )
            better += self.topology.sum(count)
        unseen = list((1 + better[first : first + len(levels)]).view(len(bonuses), -1))
        if seen is None or among_seen is None:
            return [Ranks(ranks) for ranks in unseen]
        found, of_seen = list[Ranks](), seen.plain_scores(queries, self.how)
        for bonus, ranks, level in zip(bonuses, unseen, each, strict=True):
            own_scores = of_seen if bonus is None else of_seen + bonus
            better_seen = seen.count_better(own_scores, targets, among_seen, level - tie, level + tie)
            found.append(Ranks(ranks + better_seen, ranks.masked_fill(among_seen >= 0, torch.inf)))
        return found

    @Phase("ranking")
    def best(
        self,
        interests: Interests,
        items: int,
        top: int,
        excluded: JaggedTensor | None = None,
        repeats: SeenItems | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best N of all known items for each user.

        Args:
            interests: this rank's B users, ``[B, K, d]``.
            items: the number of known items; smaller ids are ranked.
            top: N.
            excluded: B sequences of item ids that are left out for a user.
            repeats: in the place of ``excluded``, the items that each user has met, whose scores have a bonus.

        Returns:
            Scores ``[B, N]`` in descending order, and ids ``[B, N]`` int64; of equal scores the smaller id comes first.
            Filled up with -inf and -1.
        """
        queries = self.scoring.queries(interests)
        mine = _block(queries, excluded if repeats is None else repeats.items)
        world, sizes, _ = _share(self.topology, mine)
        (chunk,) = self._chunks(items, whole=True)
        shards = self._on_device(chunk)
        scores, ids = _best_of_world(next(shards), world, top)
        for shard in shards:
            more = _best_of_world(shard, world, top)
            scores, ids = _best(torch.cat([scores, more[0]], 1), torch.cat([ids, more[1]], 1), top)
        # Every rank has a list for each user of the world; a user's own rank receives all of them and merges them.
        lists = self.topology.world_size
        received = [column.new_empty(lists * len(mine.counts), top) for column in (scores, ids)]
        for column, output in zip((scores, ids), received, strict=True):
            dist.all_to_all_single(output, column.contiguous(), [len(mine.counts)] * lists, sizes)
        scores, ids = (output.view(lists, -1, top).transpose(0, 1).flatten(1) for output in received)
        if repeats is not None:
            of_repeats = repeats.scores(queries, self.how).to(scores.dtype)
            most = longest(repeats.items)
            of_repeats, mask = padded(of_repeats.unsqueeze(1), repeats.items, most)
            repeat_ids, _ = padded(repeats.items.values().unsqueeze(1), repeats.items, most)
            scores = torch.cat([scores, of_repeats.squeeze(-1).masked_fill(~mask, -torch.inf)], 1)
            ids = torch.cat([ids, repeat_ids.squeeze(-1).masked_fill(~mask, -1)], 1)
        return _best(scores, ids, top)

    def _chunks(self, items: int, whole: bool) -> list[Shard]:
        """This rank's known rows in chunks; every rank has the same number of them."""
        rows = self.catalogue.rows
        known = self.catalogue.flushed_weight()[: max(0, min(rows.stop, items) - rows.start)]
        parts = 1 if whole else 1 + max(0, int(math.log(max(1, items / self.topology.world_size / _FIRST_CHUNK), 4)))
        edges = [0, *(len(known) >> 2 * part for part in reversed(range(parts)))]
        precision, memory = self.config.precision, self.config.memory << 20
        return [
            Shard(known[begin:end], first=rows.start + begin, how=self.how, precision=precision, memory=memory)
            for begin, end in itertools.pairwise(edges)
        ]

    def _on_device(self, chunk: Shard) -> Iterator[Shard]:
        """A chunk, or copies of its parts if it is in host memory: each group of users would read it over the bus."""
        if not self.catalogue.in_host_memory:
            yield chunk
            return
        size = max(_COPIED // (chunk.weight.shape[1] * chunk.weight.element_size()), 1)
        for first in range(0, max(len(chunk.weight), 1), size):
            yield chunk._replace(weight=chunk.weight[first : first + size].clone(), first=chunk.first + first)


def _best_of_world(shard: Shard, world: _Block, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best items of a shard for each user of the world, as of `best_items`."""
    scores = world.vectors.new_empty(len(world.counts), top)
    ids = torch.empty(scores.shape, dtype=torch.int64, device=scores.device)
    everyone = torch.ones_like(world.counts, dtype=torch.bool)
    for users, _, vectors, excluded in group_by_num_interests(world, everyone, shard):
        scores[users], ids[users] = best_items(shard, vectors, top, excluded)
    return scores, ids


def _best(scores: torch.Tensor, ids: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best of each row's items, the smaller id first among equal scores."""
    ids, by_id = ids.sort(1)
    scores, by_score = scores.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    return scores[:, :top], ids.gather(1, by_score[:, :top])


def _block(interests: Interests, seen: JaggedTensor | None) -> _Block:
    """Users without targets."""
    no_pairs = torch.empty(0, 2, dtype=torch.int64, device=interests.vectors.device)
    return _Block(
        vectors=interests.vectors[interests.mask],
        counts=interests.mask.sum(1),
        targets=no_pairs,
        levels=interests.vectors.new_empty(0, 2),
        seen=no_pairs if seen is None else _pairs(seen),
    )


def group_by_num_interests(
    block: _Block, active: torch.Tensor, shard: Shard
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, Pairs]]:
    """Splits the active users into groups with equally many interests, small enough for a tile.

    Yields:
        Users ``[b]``; the index of every user of the block in the group, or -1, ``[B]``; the group's interests ``[b, K,
        d]``; pairs of an index in the group and an excluded item.
    """
    first = block.counts.cumsum(0) - block.counts
    for count in block.counts[active].unique().tolist():
        slot = torch.arange(count, device=first.device)
        for users in (active & (block.counts == count)).nonzero().squeeze(1).split(shard.max_users(count)):
            places = torch.full_like(block.counts, -1)
            places[users] = torch.arange(len(users), device=users.device)
            rows = places[block.seen[:, 0]]
            excluded = Pairs(rows[rows >= 0], block.seen[rows >= 0, 1] - shard.first)
            yield users, places, block.vectors[first[users].unsqueeze(1) + slot], excluded


def _share(topology: Topology, mine: _Block) -> tuple[_Block, list[int], int]:
    """Concatenates the blocks of all ranks.

    Returns:
        The block, the number of users of each rank, and the index of this rank's first target.
    """
    parts = [_Block(*columns) for columns in topology.gather_jagged(mine)]
    users = [len(part.counts) for part in parts]
    for first, part in zip(itertools.accumulate(users, initial=0), parts, strict=False):
        part.targets[:, 0] += first
        part.seen[:, 0] += first
    first_target = sum(len(part.targets) for part in parts[: topology.rank])
    return _Block(*map(torch.cat, zip(*parts, strict=True))), users, first_target


def _at(bonus: torch.Tensor | None, place: torch.Tensor | None) -> torch.Tensor | float:
    """The bonus of each target, ``[A]``; 0 for one that its user has not met."""
    if bonus is None or place is None:
        return 0.0
    return torch.cat([bonus, bonus.new_zeros(1)])[place]  # -1 is the last


def _pairs(sequences: JaggedTensor) -> torch.Tensor:
    """The index of the sequence and the value of each element, ``[n, 2]`` int64."""
    return torch.stack([owners_of(sequences), sequences.values()], 1)
