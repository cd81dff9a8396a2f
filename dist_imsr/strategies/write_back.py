"""Write-back: a span's interests replace the stored ones."""

from collections.abc import Iterable

import torch

from dist_imsr.data.batch import Batch
from dist_imsr.distributed.objective import Objective
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.strategies.growth import Growth


@torch.no_grad()
def write_back(model: Recommender, batches: Iterable[Batch], objective: Objective) -> Growth:
    """Extracts H_u^t and stores it; collective.

    Args:
        model: in evaluation mode; its store changes.
        batches: of the span's users, with the interactions to extract from.
        objective: extracts the interests.

    Returns:
        The number of existing interests, and how far they moved.
    """
    growth, store = Growth(), model.store
    for batch in batches:
        interests, start, existing, *_ = objective.extract(model, batch)
        store.scatter(store.owned.rows(batch.users), interests)
        cosine = torch.cosine_similarity(start.interests.vectors, interests.vectors, dim=-1)
        growth.existing += existing.sum().item()
        growth.cosine += cosine[existing].double().sum().item()
    return growth
