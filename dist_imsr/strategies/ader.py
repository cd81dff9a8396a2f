"""ADER: earlier sequences are replayed beside the new ones, and the model of the span before is their teacher."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch.func import functional_call
from torch.nn.functional import normalize
from torchrec import JaggedTensor

from dist_imsr.checks import require
from dist_imsr.data.batch import Batch
from dist_imsr.data.jagged import owners_of, pad
from dist_imsr.data.replay import Pool, ReplayedSpan
from dist_imsr.data.steps import Follow
from dist_imsr.distributed.frozen_model import FrozenModel
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.scoring import Candidates, distillation
from dist_imsr.strategies.base import Strategy
from dist_imsr.strategies.companion import Companion, Forward


@dataclass
class ADERConfig:
    """Exemplars, and how much the teacher counts.

    Args:
        pool: randomly truncated sequences that each user adds to the pool in every span; 0 for none at all.
        exemplars: of a user's own in the pool, so many are replayed beside each new sequence.
        choice: those whose mean embedding is the most similar to the new sequence's, or those whose mean comes closest
            to that of all the user's own in the pool (herding).
        weight: lambda_base of the distillation.
    """

    pool: int = 5
    exemplars: int = 1
    choice: Literal["cosine", "herding"] = "cosine"
    weight: float = 0.8

    def __post_init__(self) -> None:
        require(self.pool >= 0, "strategy.ader.pool", self.pool, "at least 0")
        require(self.exemplars >= 1, "strategy.ader.exemplars", self.exemplars, "at least 1")
        require(self.weight >= 0, "strategy.ader.weight", self.weight, "at least 0")


def ader(config: ADERConfig) -> Strategy:
    """Fine-tuning beside replayed exemplars, which are distilled from the model of the span before.

    "ADER: Adaptively Distilled Exemplar Replay Towards Continual Learning for Session-based Recommendation" (RecSys
    2020), as the paper at hand sets it up: each span adds ``pool`` truncated sequences a user. Here the pool is one of
    places in the files of earlier spans (user, span, cut), drawn by keys, so that it takes no memory and no checkpoint;
    exemplars are chosen among a user's own, since routing starts from that user's interests. They take part in Eq. 6
    like new sequences, which ADER's do not, and in the distillation over the items that its teacher knew.

    Cost per span: that of fine-tuning for each new sequence and its exemplars; one pass that embeds the pool of the
    span's users, which grows by ``pool`` sequences a user and span; a second lookup and forward pass, of the exemplars
    alone, in each step; a second table without optimizer state, which checkpoints hold as well.

    Args:
        config: the strategy's section.

    Returns:
        The strategy.
    """
    return Strategy(data=partial(ReplayedSpan, pool=config.pool), companion=lambda: Teacher(config))


def adapted(weight: float, items: tuple[int, int], sequences: tuple[int, int]) -> float:
    """lambda_t = lambda_base sqrt((items_{t-1} / items_t) (|E| / |D_t|)), ADER's adaptive weight.

    Args:
        weight: lambda_base.
        items: known before the span, and in it.
        sequences: exemplars replayed in an epoch, and new ones.

    Returns:
        lambda_t; 0 where nothing is replayed.
    """
    return weight * math.sqrt(items[0] / items[1] * sequences[0] / sequences[1]) if sequences[0] else 0.0


class Teacher(Companion):
    """The model of the span before, and the weight of what it says.

    Args:
        config: the strategy's section.
    """

    past: FrozenModel
    weight = 0.0
    _known = 0  # the items that it knows are those below

    def __init__(self, config: ADERConfig) -> None:
        self.config = config

    def wake(self) -> None:
        """Copies the model."""
        self.past = FrozenModel(self.parts.catalogue, self.parts.extractor, self.parts.topology.rank == 0)
        self.awake = True

    def begin(self, data: Any, forward: Forward, follow: Follow, fresh: bool) -> None:
        """Takes the model as teacher, and chooses the span's exemplars."""
        if fresh:
            self.past.copy_from_live()
        with torch.no_grad():
            for pool in follow(data.pools(), f"exemplars of span {data.span}", data.block):
                data.choose(pool.places[self._chosen(pool)].numpy(force=True))
        items = self._known, _ = data.items_before, data.items
        self.weight = adapted(self.config.weight, items, data.sequences())

    def penalty(self, batch: Batch, start: Start, scores: Candidates, forward: Forward) -> torch.Tensor:
        """The distillation of the replayed sequences, with its weight."""
        if not self.weight:
            return scores.positive.new_zeros(())
        replay = batch.replay()
        with torch.no_grad(), self.parts.engine.precision():
            history, targets, negatives = self.past.table.lookup(replay.history, replay.targets, replay.negatives)
            items, mask = pad(history, replay.history.lengths())
            asked = items, mask, start.last(batch.replayed, items.shape[1])
            interests: Interests = functional_call(self.parts.extractor, self.past.weights, asked)
        with torch.no_grad():
            teacher = forward.scores(replay, interests, targets, negatives)
        met = batch.negatives.values() < self._known
        choices = (Candidates(one.positive, one.others[:, met]) for one in (scores.last(len(targets)), teacher))
        # The mean over replayed targets, in a loss whose sum is divided by all of them.
        return self.weight * batch.world_targets / max(batch.world_replayed, 1) * distillation(*choices)

    def grow(self, items: int) -> None:
        """The teacher's table follows."""
        if self.awake:
            self.past.grow(items)

    def state(self) -> dict[str, ShardRows]:
        """The teacher."""
        return self.past.state() if self.awake else {}

    def _chosen(self, pool: Pool) -> torch.Tensor:
        """Which sequences of a block's pool are replayed, ``[P]`` bool."""
        new, old = self._means(pool.new, pool.history)
        owners = pool.owners
        if self.config.choice == "cosine":
            like = (normalize(old, dim=-1) * normalize(new, dim=-1)[owners]).sum(-1)
            return best_of(like, owners, self.config.exemplars)
        return herded(old, owners, self.config.exemplars)

    def _means(self, *sequences: JaggedTensor) -> list[torch.Tensor]:
        """Mean embeddings of sequences, as the teacher holds them."""
        means = []
        for values, each in zip(self.past.table.lookup(*sequences), sequences, strict=True):
            total = values.new_zeros(len(each.lengths()), values.shape[1]).index_add_(0, owners_of(each), values)
            means.append(total / each.lengths().clamp(min=1).unsqueeze(1))
        return means


def best_of(values: torch.Tensor, owners: torch.Tensor, most: int) -> torch.Tensor:
    """The largest values of each owner.

    Args:
        values: ``[P]``.
        owners: ``[P]`` int64, ascending.
        most: so many of each.

    Returns:
        ``[P]`` bool.
    """
    order = values.argsort(descending=True, stable=True)
    order = order[owners[order].argsort(stable=True)]  # owner after owner, the largest first
    first = torch.searchsorted(owners, owners)  # where each owner's begin
    chosen = torch.zeros_like(owners, dtype=torch.bool)
    chosen[order] = torch.arange(len(owners), device=owners.device) - first < most
    return chosen


def herded(vectors: torch.Tensor, owners: torch.Tensor, most: int) -> torch.Tensor:
    """Herding: one after the other, the vector that brings the mean of the chosen closest to the owner's mean.

    From "iCaRL: Incremental Classifier and Representation Learning" (CVPR 2017), which ADER follows.

    Args:
        vectors: ``[P, d]``.
        owners: ``[P]`` int64, ascending.
        most: so many of each owner's.

    Returns:
        ``[P]`` bool.
    """
    users = int(owners[-1]) + 1 if len(owners) else 0
    count = torch.bincount(owners, minlength=users).clamp(min=1).unsqueeze(1)
    mean = vectors.new_zeros(users, vectors.shape[1]).index_add_(0, owners, vectors) / count
    total, chosen = torch.zeros_like(mean), torch.zeros_like(owners, dtype=torch.bool)
    for number in range(1, most + 1):
        gap = (mean[owners] - (total[owners] + vectors) / number).norm(dim=-1)
        one = best_of((-gap).masked_fill(chosen, -torch.inf), owners, 1) & ~chosen
        total.index_add_(0, owners[one], vectors[one])
        chosen |= one
    return chosen
