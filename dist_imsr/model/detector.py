"""NID, the new-interests detector (Section IV-C): which users' items fit none of their interests."""

from dataclasses import dataclass
from typing import Literal

import torch

from dist_imsr.config import require
from dist_imsr.model.interests import Interests


@dataclass
class DetectorConfig:
    """When a user gets new interests, and how many.

    Args:
        enabled: whether to detect at all.
        rule: ``mean`` compares the mean divergence of a user's items with c1 (Eq. 14 as erratum E3 reads it); ``count``
            is the authors' code: more than ``items`` items have a divergence below c1.
        c1: a user is puzzled below it.
        items: of the rule ``count``.
        delta_k: the interests that a puzzled user gets.
        k_max: no user gets more than this many in all.
        each_epoch: detect before every epoch, as in Algorithm 2, instead of once when a span begins.
    """

    enabled: bool = True
    rule: Literal["mean", "count"] = "mean"
    c1: float = 0.06
    items: int = 3
    delta_k: int = 3
    k_max: int = 20
    each_epoch: bool = False

    def __post_init__(self) -> None:
        at = "strategy.imsr.detector"
        require(self.c1 >= 0, f"{at}.c1", self.c1, "at least 0")
        require(self.items >= 0, f"{at}.items", self.items, "at least 0")
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


def user_divergence(found: torch.Tensor, mask: torch.Tensor, config: DetectorConfig) -> torch.Tensor:
    """What the rule compares with c1: users below it are puzzled and need new interests (Eq. 14).

    The paper's P(i) = -KL is never positive, so that "mean P > c1" would never hold for c1 > 0. Erratum E3: a user is
    puzzled when the mean divergence lies *below* c1. The counting rule asks for more than n items below c1, which is to
    say that the (n + 1)-th smallest divergence lies there.

    Args:
        found: ``[B, L]``, the divergence of each item.
        mask: ``[B, L]`` bool, false for padding.
        config: the rule.

    Returns:
        ``[B]``; infinite for a user with too few items to be puzzled.
    """
    if config.rule == "count":
        ordered = found.masked_fill(~mask, torch.inf).sort(1).values
        return (
            ordered[:, config.items] if ordered.shape[1] > config.items else found.new_full(found.shape[:1], torch.inf)
        )
    count = mask.sum(1)
    return ((found * mask).sum(1) / count.clamp(min=1)).masked_fill(count == 0, torch.inf)
