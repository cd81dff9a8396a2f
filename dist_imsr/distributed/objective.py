"""How a training step turns a batch into interests, scores and losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from dist_imsr.data.batch import Batch
from dist_imsr.data.jagged import longest, pad, places_in_padding
from dist_imsr.distributed.slots import Layout
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.scoring import Candidates, attend, candidates

if TYPE_CHECKING:
    from dist_imsr.distributed.recommender import Recommender


class Extraction(NamedTuple):
    """Interests extracted from a batch's histories, with their inputs.

    Args:
        interests: H_u^t, ``[B, K, d]``.
        start: the extractor's inputs besides the items: stored interests, queries, states.
        existing: ``[B, K]`` bool, the interests that are older than the span.
        targets: ``[A, row width]``, the targets' rows of the item table.
        negatives: ``[N, row width]``, the negatives' rows.
        layout: the users' numbers of interests, on the host.
    """

    interests: Interests
    start: Start
    existing: torch.Tensor
    targets: torch.Tensor
    negatives: torch.Tensor
    layout: Layout


class Scores(NamedTuple):
    """Scores of a batch's targets and negatives, with the padded targets.

    Args:
        candidates: the scores of each target and of its negatives.
        targets: ``[B, T, row width]``, the targets' rows, padded.
        target_mask: ``[B, T]`` bool, false for padding.
        agreement: ``[B, K, T]``, dot products of queries and targets' rows.
    """

    candidates: Candidates
    targets: torch.Tensor
    target_mask: torch.Tensor
    agreement: torch.Tensor


class Objective(Protocol):
    """Defines how a step turns a batch into interests and losses; every strategy does."""

    def extract(self, model: Recommender, batch: Batch, training: bool = False) -> Extraction:
        """The interests of the batch's users."""
        ...

    def extra_loss(
        self, model: Recommender, batch: Batch, extraction: Extraction, scores: Scores
    ) -> torch.Tensor | None:
        """A loss that is added to Eq. 6, summed over this rank's targets; None for none."""
        ...


class NextItem:
    """The objective without a strategy: Eq. 6 alone."""

    def extract(self, model: Recommender, batch: Batch, training: bool = False) -> Extraction:
        """Extraction by the base model (Eq. 1)."""
        return model.extract(batch, training=training)

    def extra_loss(
        self, model: Recommender, batch: Batch, extraction: Extraction, scores: Scores
    ) -> torch.Tensor | None:
        """None."""
        return None


def score_batch(batch: Batch, queries: Interests, targets: torch.Tensor, negatives: torch.Tensor) -> Scores:
    """Scores a batch's targets and negatives with the targets' v_u (Eq. 5).

    Args:
        batch: B users.
        queries: of the users' interests, as in `Scoring.queries`.
        targets: ``[A, row width]``, the targets' rows.
        negatives: ``[N, row width]``, the negatives' rows.
    """
    most = longest(batch.host.targets)
    padded, mask = pad(targets, batch.targets, most)
    agreement = queries.vectors @ padded.mT
    place = places_in_padding(batch.targets, most)
    users, targets = (block.flatten(0, 1)[place] for block in (attend(queries, agreement), padded))
    scored = candidates(
        users,
        targets,
        negatives,
        batch.targets.values(),
        batch.negatives.values(),
        batch.target_log_q,
        batch.negative_log_q,
    )
    return Scores(scored, padded, mask, agreement)
