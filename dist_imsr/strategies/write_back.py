"""Write-back: a span's interests replace the stored ones."""

from collections.abc import Iterable

import torch

from dist_imsr.data.batch import Batch
from dist_imsr.distributed.columns import send_to
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
    growth, store, device = Growth(), model.store, model.topology.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    for batch in batches:
        extraction = objective.extract(model, batch)
        interests, layout = extraction.interests, extraction.layout
        store.scatter(batch.host.users, interests, layout)
        cosine = torch.cosine_similarity(extraction.start.interests.vectors, interests.vectors, dim=-1)
        growth.existing += float(layout.older.sum())
        total += cosine.flatten()[send_to(layout.existing(), device)].double().sum()
    growth.cosine = total.item()
    return growth
