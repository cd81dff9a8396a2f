"""PIT's last step: short new interests go when the span ends."""

import torch

from dist_imsr.distributed.interest_store import InterestStore
from dist_imsr.model.trimmer import TrimmerConfig
from dist_imsr.phases import Phase
from dist_imsr.strategies.growth import Growth


@Phase("trimmer")
def trim(store: InterestStore, trimmer: TrimmerConfig, span: int) -> Growth:
    """Removes the new interests that are too short (Eq. 17, erratum E5), once they are written back.

    First interests of new users stay whatever their norm.

    Args:
        store: the interests.
        trimmer: the section.
        span: the span of their birth.

    Returns:
        The numbers of interests kept and trimmed, with their norms.
    """
    created = store.created(span)
    norms = store.norms(created)
    stays = norms >= trimmer.c2 if trimmer.trim else torch.ones_like(norms, dtype=torch.bool)
    kept, trimmed = norms[stays].double(), norms[~stays].double()
    if len(trimmed):
        store.trim(torch.ones_like(store.birth_span, dtype=torch.bool).index_fill_(0, created[~stays], False))
    return Growth(
        kept=len(kept),
        trimmed=len(trimmed),
        norm_kept=kept.sum().item(),
        norm_trimmed=trimmed.sum().item(),
    )
