"""Lines 14-16 of Algorithm 1: short new interests are trimmed at the end of a span."""

import torch

from dist_imsr.distributed.interest_store import InterestStore
from dist_imsr.model.trimmer import TrimmerConfig
from dist_imsr.phases import Phase
from dist_imsr.strategies.growth import Growth


@Phase("trimmer")
def trim(store: InterestStore, trimmer: TrimmerConfig, span: int) -> Growth:
    """Removes the new interests that are too short (Eq. 17, erratum E5), once they are written back.

    New users keep their first interests, whatever their norms.

    Args:
        store: the interests; it shrinks.
        trimmer: the section.
        span: the span that created the interests.

    Returns:
        The numbers of interests kept and trimmed, with their norms.
    """
    created = store.created(span)
    norms = store.norms(created)
    long_enough = norms >= trimmer.c2 if trimmer.trim else torch.ones_like(norms, dtype=torch.bool)
    kept, trimmed = norms[long_enough].double(), norms[~long_enough].double()
    if len(trimmed):
        keep = torch.ones_like(store.birth_span, dtype=torch.bool).index_fill_(0, created[~long_enough], False)
        store.trim(keep)  # lines 15-16
    return Growth(
        kept=len(kept),
        trimmed=len(trimmed),
        norm_kept=kept.sum().item(),
        norm_trimmed=trimmed.sum().item(),
    )
