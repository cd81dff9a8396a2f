"""The validation metric, which stops a span's training early."""

import math
from collections.abc import Iterable

import torch

from dist_imsr.data.batch import Batch
from dist_imsr.distributed.objective import Objective
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.evaluation.metrics import discount
from dist_imsr.evaluation.ranking import Ranker


@torch.no_grad()
def mean_gain(
    model: Recommender, ranker: Ranker, batches: Iterable[Batch], objective: Objective, items: int, top: int | None
) -> float:
    """The mean NDCG@top or reciprocal rank over all ranks' users; collective.

    Args:
        model: in evaluation mode.
        ranker: ranks the targets among all items.
        batches: with one target for each user.
        objective: extracts the interests.
        items: the number of known items.
        top: of NDCG; None for the reciprocal rank.

    Returns:
        The mean; NaN without targets.
    """
    total, users = torch.zeros((), dtype=torch.float64, device=model.topology.device), 0
    for batch in batches:
        extraction = objective.extract(model, batch)
        ranks = ranker.ranks(extraction.interests, batch.targets, extraction.targets, items, top).all_items
        gain = 1 / ranks if top is None else discount(ranks, top)
        total += gain.sum()
        users += len(ranks)
    gains, everyone = model.topology.sum(torch.stack([total, total.new_full((), users)])).tolist()
    return gains / everyone if everyone else math.nan
