"""The repeat-aware score of erratum E11: what a user has met often and lately scores higher."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.checks import require
from dist_imsr.data.batch import Batch
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.history import History, PastItems
from dist_imsr.distributed.objective import Objective
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.evaluation.metrics import discount
from dist_imsr.evaluation.ranking import Ranker
from dist_imsr.evaluation.seen import SeenItems
from dist_imsr.model.interests import Interests

DECAYS = (0.98, 0.99, 0.995, 0.999, 1.0)
"""Candidates of the decay."""


@dataclass
class RepeatsConfig:
    """The repeat-aware score s(u, i) + a log(1 + decayed count of i in u's past), which is not part of the paper.

    Args:
        enabled: whether scores count repeats, in tests and in recommendations; training does not.
        weights: candidates of a; the largest sorts a user's own items by counts alone, before all others. The tests so
            far choose one of them, and a decay, for the next test; before the first one, validation does. In
            validation, targets follow the history at once, so that the model is better than in a test, where a span
            lies between, and repeats would weigh too little.
        decays: candidates of the decay: an interaction counts decay^n, n interactions of its user later.
    """

    enabled: bool = False
    weights: list[float] = field(default_factory=lambda: [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 1024.0])
    decays: list[float] = field(default_factory=lambda: list(DECAYS))

    def __post_init__(self) -> None:
        require(bool(self.weights) and min(self.weights) >= 0, "repeats.weights", self.weights, "numbers of at least 0")
        decays = self.decays
        require(bool(decays) and 0 < min(decays) <= max(decays) <= 1, "repeats.decays", decays, "above 0, at most 1")

    @property
    def candidates(self) -> "list[Repeats]":
        """All pairs of a weight and a decay, the smaller weights first; none if scores do not count repeats."""
        pairs = sorted(set(itertools.product(self.weights, self.decays))) if self.enabled else []
        return [Repeats(weight, decay) for weight, decay in pairs if weight or decay == max(self.decays)]

    def check(self, dataset: Dataset) -> None:
        """Refuses to count interactions of retired spans.

        Raises:
            ValueError: with the reason and what to do.
        """
        if self.enabled and dataset.first_kept:
            raise ValueError(
                f"repeats.enabled: all that users have met counts, but {dataset.retired_rows}: prepare the whole log "
                "again, into another folder, or train a run without this key"
            )


class Repeats(NamedTuple):
    """What a repeat adds to a score.

    Args:
        weight: a of erratum E11; 0 for nothing.
        decay: of a count with each later interaction of the user.
    """

    weight: float = 0.0
    decay: float = 1.0

    def bonus(self, past: PastItems, device: torch.device) -> torch.Tensor:
        """What is added to the score of each item for its user, ``[m]`` float64 on a device."""
        return torch.from_numpy(self.weight * np.log1p(past.weights(self.decay))).to(device)


def rank_with_each(
    ranker: Ranker,
    interests: Interests,
    targets: JaggedTensor,
    embeddings: torch.Tensor,
    items: int,
    top: int,
    seen: SeenItems,
    past: PastItems,
    candidates: Sequence[Repeats],
) -> torch.Tensor:
    """The sums of NDCG@N over users with each candidate, ``[C]`` float64 on the host; collective.

    Args:
        ranker: ranks the targets among all items.
        interests: this rank's B users, ``[B, K, d]``.
        targets: B sequences of one item id.
        embeddings: ``[B, row width]``, of the values of ``targets``.
        items: the number of known items.
        top: N.
        seen: what the users met before.
        past: the same items, with their times.
        candidates: at least one.
    """
    bonuses = [candidate.bonus(past, embeddings.device) for candidate in candidates]
    ranks = ranker.ranks_of_each(interests, targets, embeddings, items, top, seen, bonuses)
    return torch.stack([discount(one.all_items, top).sum() for one in ranks]).cpu()


def best_repeats(candidates: Sequence[Repeats], gains: Sequence[float]) -> Repeats:
    """The candidate with the largest gain, the first of equals; a weight of 0 if there are no gains."""
    best = max(gains, default=0.0)
    pairs = zip(candidates, gains, strict=True)
    return next((one for one, gain in pairs if best and math.isclose(gain, best)), Repeats())


@torch.no_grad()
def choose_repeats(
    candidates: Sequence[Repeats],
    model: Recommender,
    ranker: Ranker,
    batches: Iterable[Batch],
    objective: Objective,
    history: History,
    items: int,
    top: int,
) -> Repeats:
    """Chooses weight and decay by the mean NDCG of validation targets; collective.

    Args:
        candidates: what is chosen from.
        model: in evaluation mode.
        ranker: ranks the targets among all items.
        batches: with one target for each user.
        objective: extracts the interests.
        history: of the users before their targets.
        items: the number of known items.
        top: N of NDCG@N.

    Returns:
        That of `best_repeats`.
    """
    gains, device = torch.zeros(len(candidates), dtype=torch.float64), model.topology.device
    for batch in batches:
        extraction, past = objective.extract(model, batch), history(batch.users)
        met = past.jagged(device)
        [embeddings] = model.catalogue.lookup(met)
        seen, users = SeenItems(met, embeddings), (extraction.interests, batch.targets, extraction.targets)
        gains += rank_with_each(ranker, *users, items, top, seen, past, candidates)
    return best_repeats(candidates, model.topology.sum(gains).tolist())
