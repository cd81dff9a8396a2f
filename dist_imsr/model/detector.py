"""NID, the new-interests detector (Section IV-C): which users' items fit none of their interests."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import pad

from dist_imsr.checks import require
from dist_imsr.model.interests import Interests

_SHORTEST = 1e-12  # of the product of two lengths


@dataclass
class DetectorConfig:
    """When a user gets new interests, and how many.

    Args:
        enabled: whether to detect at all.
        measure: how well an item fits a user's interests: ``divergence`` is the paper's (Eq. 11-12), which is small as
            well where the interests are alike or embeddings are short; ``cosine`` is the largest cosine between the
            item and an interest, which depends on neither.
        rule: what is compared with c1: the ``mean`` over the user's items (Eq. 14 as erratum E3 reads it); ``count``,
            the authors' code, asks for more than ``items`` items below c1; ``share`` for more than this share of them.
        c1: a user is puzzled below it.
        items: of the rule ``count``.
        share: of the rule ``share``.
        untrained: whether items that no span before held count as well, before training has touched them. Their
            embeddings are random and fit nobody: where most of a span's items are new, everybody is puzzled.
        delta_k: the interests that a puzzled user gets.
        k_max: no user gets more than this many in all.
        each_epoch: detect before every epoch, as in Algorithm 2, instead of once when a span begins. Items are held
            against the interests that are older than the span, and nobody gets new ones twice in it.
    """

    enabled: bool = True
    measure: Literal["divergence", "cosine"] = "cosine"
    rule: Literal["mean", "count", "share"] = "share"
    c1: float = 0.3
    items: int = 3
    share: float = 0.2
    untrained: bool = False
    delta_k: int = 1
    k_max: int = 20
    each_epoch: bool = False

    def __post_init__(self) -> None:
        at = "strategy.imsr.detector"
        require(self.c1 >= 0, f"{at}.c1", self.c1, "at least 0")
        require(self.items >= 0, f"{at}.items", self.items, "at least 0")
        require(0 <= self.share < 1, f"{at}.share", self.share, "0 or more, less than 1")
        require(self.delta_k >= 1, f"{at}.delta_k", self.delta_k, "at least 1")
        require(self.k_max >= 1, f"{at}.k_max", self.k_max, "at least 1")


def divergence(interests: Interests, items: torch.Tensor) -> torch.Tensor:
    """KL(uniform || p(h_k | e_i)) of Eq. 11-12: how far an item is from fitting all interests alike.

    Args:
        interests: of B users with at least one interest, ``[B, K, d]``.
        items: ``[B, L, d]``, embeddings e_i.

    Returns:
        ``[B, L]``, at least 0 up to rounding; 0 for a user with one interest.
    """
    agreement = items @ interests.vectors.mT  # [B, L, K]
    mask = interests.mask.unsqueeze(1)
    count = mask.sum(-1).to(agreement.dtype)
    total = agreement.masked_fill(~mask, -torch.inf).logsumexp(-1)
    return total - agreement.masked_fill(~mask, 0).sum(-1) / count - count.log()


def largest_cosine(interests: Interests, items: torch.Tensor) -> torch.Tensor:
    """max_k cos(h_k, e_i): how far an item lies from the nearest interest, whatever their lengths.

    Args:
        interests: of B users with at least one interest, ``[B, K, d]``.
        items: ``[B, L, d]``, embeddings e_i.

    Returns:
        ``[B, L]``, -1 to 1.
    """
    lengths = items.norm(dim=-1).unsqueeze(-1) * interests.vectors.norm(dim=-1).unsqueeze(1)
    # Dividing the products spares a pass over the items, which are d times as many numbers.
    # The square of a very short vector is 0, but its products are not: what has next to no length fits nothing.
    cosines = items @ interests.vectors.mT / lengths.clamp(min=_SHORTEST)  # [B, L, K]
    # A column more, as a rank without users in a step has none.
    return pad(cosines.masked_fill(~interests.mask.unsqueeze(1), -1), (0, 1), value=-1).amax(-1)


def item_fit(interests: Interests, items: torch.Tensor, config: DetectorConfig) -> torch.Tensor:
    """How well items fit users' interests, by the measure that is asked for; less is more puzzling.

    Args:
        interests: of B users with at least one interest, ``[B, K, d]``.
        items: ``[B, L, d]``, embeddings e_i.
        config: the measure.

    Returns:
        ``[B, L]``.
    """
    return (divergence if config.measure == "divergence" else largest_cosine)(interests, items)


def user_fit(found: torch.Tensor, mask: torch.Tensor, config: DetectorConfig) -> torch.Tensor:
    """What the rule compares with c1: users below it are puzzled and need new interests (Eq. 14).

    The paper's P(i) = -KL is never positive, so that "mean P > c1" would never hold for c1 > 0. Erratum E3: a user is
    puzzled when the mean divergence lies *below* c1. The other rules ask for more than n items below c1, which is to
    say that the (n + 1)-th smallest fit lies there.

    Args:
        found: ``[B, L]``, the fit of each item.
        mask: ``[B, L]`` bool, false for padding.
        config: the rule.

    Returns:
        ``[B]``; infinite for a user with too few items to be puzzled.
    """
    count = mask.sum(1)
    if config.rule == "mean":
        return ((found * mask).sum(1) / count.clamp(min=1)).masked_fill(count == 0, torch.inf)
    place = (config.share * count).long() if config.rule == "share" else torch.full_like(count, config.items)
    ordered = found.masked_fill(~mask, torch.inf).sort(1).values
    ordered = pad(ordered, (0, 1), value=torch.inf)
    return ordered.gather(1, place.clamp(max=found.shape[1]).unsqueeze(1)).squeeze(1)
