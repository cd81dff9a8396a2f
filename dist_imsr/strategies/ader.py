"""ADER: replays earlier sequences with the new ones, and distils them from the model of the span before."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch.func import functional_call
from torch.nn.functional import normalize
from torchrec import JaggedTensor

from dist_imsr.checks import require
from dist_imsr.data.batch import Batch
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.jagged import longest, owners_of, pad
from dist_imsr.data.replay import Pool, ReplayedSpan
from dist_imsr.distributed.columns import send_to
from dist_imsr.distributed.frozen_model import FrozenModel
from dist_imsr.distributed.objective import Extraction, Scores, score_batch
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.model.interests import Interests
from dist_imsr.model.scoring import Candidates, distillation
from dist_imsr.phases import Phase
from dist_imsr.strategies.base import Strategy, register_strategy
from dist_imsr.strategies.resources import Resources
from dist_imsr.strategies.span_trainer import SpanReport, SpanTrainer


@dataclass
class ADERConfig:
    """Exemplars, and the weight of the teacher.

    Args:
        pool: number of randomly truncated sequences that each user adds to the pool in every span; 0 for no replay.
        exemplars: number of a user's sequences in the pool that are replayed with each new sequence.
        choice: how they are chosen: by the similarity of their mean embedding to that of the new sequence (cosine), or
            so that their mean is the closest to that of all the user's sequences in the pool (herding).
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


@register_strategy("ader", ADERConfig)
class ADER(Strategy):
    """Fine-tuning with replayed exemplars, which are distilled from the model of the span before.

    "ADER: Adaptively Distilled Exemplar Replay Towards Continual Learning for Session-based Recommendation" (RecSys
    2020), with ``pool`` truncated sequences per user and span, as in the IMSR paper. The pool holds positions in the
    files of earlier spans (user, span, cut), drawn by keyed random numbers: it takes no memory and no checkpoint. A
    user's exemplars come from the user's own sequences, since routing starts from that user's interests. Unlike in
    ADER, exemplars also take part in Eq. 6. They are distilled over the items that the teacher knows.

    Cost per span: that of fine-tuning for each new sequence and its exemplars; one pass that embeds the pool of the
    span's users, which grows by ``pool`` sequences per user and span; in each step a second lookup and forward pass of
    the exemplars; a second table without optimizer state, which checkpoints hold as well.

    Args:
        config: the strategy's section.
    """

    teacher: FrozenModel | None = None

    def __init__(self, config: ADERConfig) -> None:
        self.config = config
        self._weight = 0.0  # lambda_t
        self._teacher_items = 0  # the number of items that the teacher knows

    def train_span(self, trainer: SpanTrainer, span: int) -> SpanReport:
        """Chooses exemplars, then trains on them and on the new sequences, taught by the model of the span before."""
        if span == 0:
            return trainer.pretrain(self)
        trainer.add_items(span)
        data = trainer.open_span(span, ReplayedSpan, pool=self.config.pool)
        trainer.admit_users(data)
        trainer.set_learning_rates(pretraining=False)
        with Phase("strategy"):
            if self.teacher is None:
                self.initialize_state(trainer.model)
            assert self.teacher is not None
            trainer.start_biases()  # the teacher's popularity would be that of the span before
            if not trainer.progress.begun:
                self.teacher.copy_from_live()
            self.choose_exemplars(trainer, data)
        for _ in trainer.epochs(pretraining=False):
            loss = trainer.train_epoch(data, self)
            trainer.end_epoch(loss, trainer.validate(data, self))
        trainer.restore_best()
        trainer.write_back(data, self)
        return trainer.report()

    def choose_exemplars(self, trainer: SpanTrainer, data: ReplayedSpan) -> None:
        """Chooses the sequences of earlier spans to replay, and computes the weight of the distillation."""
        with torch.no_grad():
            for pool in trainer.track(data.pools(), f"exemplars of span {data.span}", data.block):
                data.choose(pool.places[self._chosen(pool)].numpy(force=True))
        self._teacher_items = data.items_before
        exemplars, sequences = data.sequences()
        self._weight = adaptive_weight(
            self.config.weight,
            items_before=data.items_before,
            items=data.items,
            exemplars=exemplars,
            sequences=sequences,
        )

    def extra_loss(
        self, model: Recommender, batch: Batch, extraction: Extraction, scores: Scores
    ) -> torch.Tensor | None:
        """The weighted distillation loss of the replayed sequences."""
        if not self._weight or self.teacher is None:
            return None
        replay = batch.replay()
        with torch.no_grad(), model.engine.precision():
            history, targets, negatives = self.teacher.table.lookup(replay.history, replay.targets, replay.negatives)
            items, mask = pad(history[:, : model.config.dim], replay.history, longest(replay.host.history))
            inputs = items, mask, extraction.start.last(batch.replayed, items.shape[1])
            interests: Interests = functional_call(model.extractor, self.teacher.weights, inputs)
        with torch.no_grad():
            teacher = score_batch(replay, model.scoring.queries(interests), targets, negatives).candidates
        known = (batch.host.negatives.values() < self._teacher_items).nonzero().squeeze(1)
        known = send_to(known, targets.device)
        student = scores.candidates.last(len(targets))
        student, teacher = (Candidates(one.positive, one.others[:, known]) for one in (student, teacher))
        # The mean over replayed targets, in a loss whose sum is divided by all of them.
        return self._weight * batch.world_targets / max(batch.world_replayed, 1) * distillation(student, teacher)

    def check(self, dataset: Dataset, spans: range) -> None:
        """Refuses retired spans, whose sequences the pool holds."""
        if self.config.pool and spans and dataset.first_kept:
            raise ValueError(
                f"strategy.ader.pool: sequences of all earlier spans are replayed, but {dataset.retired_rows}: prepare "
                "the whole log again, into another folder, or train a run with --strategy.ader.pool 0"
            )

    def state(self) -> dict[str, ShardRows]:
        """The teacher's tensors."""
        return {} if self.teacher is None else self.teacher.state()

    def initialize_state(self, model: Recommender) -> None:
        """Copies the model as the teacher."""
        self.teacher = FrozenModel(model.catalogue, model.extractor, model.topology.rank == 0)

    def resources(self) -> Resources:
        """The teacher's table, and an index of earlier spans."""
        replayed = self.config.exemplars if self.config.pool else 0
        return Resources(tables=1, reads_history=True, replayed=replayed, pool=self.config.pool)

    def _chosen(self, pool: Pool) -> torch.Tensor:
        """The mask ``[P]`` of the sequences of a block's pool to replay."""
        new, old = self._mean_embeddings(pool.new, pool.history)
        owners = pool.owners
        if self.config.choice == "cosine":
            similarity = (normalize(old, dim=-1) * normalize(new, dim=-1)[owners]).sum(-1)
            return top_per_owner(similarity, owners, self.config.exemplars)
        return herding(old, owners, self.config.exemplars)

    def _mean_embeddings(self, *sequences: JaggedTensor) -> list[torch.Tensor]:
        """Mean embeddings of sequences in the teacher's table."""
        assert self.teacher is not None
        means = []
        for values, each in zip(self.teacher.table.lookup(*sequences), sequences, strict=True):
            total = values.new_zeros(len(each.lengths()), values.shape[1]).index_add_(0, owners_of(each), values)
            means.append(total / each.lengths().clamp(min=1).unsqueeze(1))
        return means


def adaptive_weight(weight: float, *, items_before: int, items: int, exemplars: int, sequences: int) -> float:
    """lambda_t = lambda_base sqrt((items_{t-1} / items_t) (|E| / |D_t|)), ADER's adaptive weight.

    Args:
        weight: lambda_base.
        items_before: number of items known before the span.
        items: number of items known by the end of the span.
        exemplars: number of exemplars in an epoch.
        sequences: number of new sequences in an epoch.

    Returns:
        lambda_t; 0 without exemplars.
    """
    return weight * math.sqrt(items_before / items * exemplars / sequences) if exemplars else 0.0


def top_per_owner(values: torch.Tensor, owners: torch.Tensor, most: int) -> torch.Tensor:
    """The largest values of each owner.

    Args:
        values: ``[P]``.
        owners: ``[P]`` int64, ascending.
        most: maximum number for each owner.

    Returns:
        Their mask ``[P]``.
    """
    order = values.argsort(descending=True, stable=True)
    order = order[owners[order].argsort(stable=True)]  # by owner, then in descending order
    first = torch.searchsorted(owners, owners)  # the first place of each owner
    chosen = torch.zeros_like(owners, dtype=torch.bool)
    chosen[order] = torch.arange(len(owners), device=owners.device) - first < most
    return chosen


def herding(vectors: torch.Tensor, owners: torch.Tensor, most: int) -> torch.Tensor:
    """Herding: repeatedly chooses the vector that brings the mean of the chosen ones closest to the owner's mean.

    From "iCaRL: Incremental Classifier and Representation Learning" (CVPR 2017), which ADER follows.

    Args:
        vectors: ``[P, d]``.
        owners: ``[P]`` int64, ascending.
        most: maximum number for each owner.

    Returns:
        The mask ``[P]`` of the chosen vectors.
    """
    users = int(owners[-1]) + 1 if len(owners) else 0
    count = torch.bincount(owners, minlength=users).clamp(min=1).unsqueeze(1)
    mean = vectors.new_zeros(users, vectors.shape[1]).index_add_(0, owners, vectors) / count
    total, chosen = torch.zeros_like(mean), torch.zeros_like(owners, dtype=torch.bool)
    for number in range(1, most + 1):
        gap = (mean[owners] - (total[owners] + vectors) / number).norm(dim=-1)
        one = top_per_owner((-gap).masked_fill(chosen, -torch.inf), owners, 1) & ~chosen
        total.index_add_(0, owners[one], vectors[one])
        chosen |= one
    return chosen
