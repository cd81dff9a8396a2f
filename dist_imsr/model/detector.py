"""NID, the new-interests detector (Section IV-C): finds users whose items fit none of their interests."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import normalize, pad

from dist_imsr.checks import require
from dist_imsr.model.interests import Interests

_SHORTEST = 1e-12  # the least product of two lengths to divide by


@dataclass
class DetectorConfig:
    """When a user gets new interests, and how many.

    Args:
        enabled: whether to detect at all.
        measure: how well an item fits a user's interests. ``divergence`` is the paper's (Eq. 11-12); it is also small
            when interests are similar or embeddings are short. ``cosine`` is the largest cosine between the item and
            an interest, and depends on neither. ``percentile`` compares that cosine with those of other users' items:
            it is the share of them that fit the user less, and means the same on any data.
        rule: when a user is puzzled. ``mean``: the mean fit over the user's items is below c1 (Eq. 14 as read by
            erratum E3). ``count``: more than ``items`` items are below c1, as in the authors' code. ``share``: more
            than this share of the items are below c1.
        c1: the threshold of the rule, in the measure's unit: the default is for ``percentile``.
        items: the number of items of the rule ``count``.
        share: the share of items of the rule ``share``.
        untrained: also count items that first appear in this span, before they are trained. Their embeddings are
            random and fit no interest: if most of a span's items are new, every user is puzzled.
        null_items: the number of other users' interactions, drawn at random, that ``percentile`` compares with.
        start: where routing starts from for a new interest: ``noise``, N(0, I) as in Algorithm 2; or ``items``, the
            puzzling item with the most similar ones around it (erratum E3b).
        delta_k: new interests per puzzled user.
        k_max: the most interests per user.
        epochs: detect before so many of a span's first epochs, from the second one on also by the span's new items;
            None for every epoch, as in Algorithm 2. Items are compared with the interests from before the span, and a
            user gets new interests at most once per span.
    """

    enabled: bool = True
    measure: Literal["divergence", "cosine", "percentile"] = "percentile"
    rule: Literal["mean", "count", "share"] = "share"
    c1: float = 0.9
    items: int = 3
    share: float = 0.15
    untrained: bool = False
    null_items: int = 500
    start: Literal["noise", "items"] = "items"
    delta_k: int = 1
    k_max: int = 20
    epochs: int | None = 2

    def __post_init__(self) -> None:
        at = "strategy.imsr.detector"
        require(self.c1 >= 0, f"{at}.c1", self.c1, "at least 0")
        require(self.items >= 0, f"{at}.items", self.items, "at least 0")
        require(0 <= self.share < 1, f"{at}.share", self.share, "0 or more, less than 1")
        require(self.null_items >= 1, f"{at}.null_items", self.null_items, "at least 1")
        require(self.delta_k >= 1, f"{at}.delta_k", self.delta_k, "at least 1")
        require(self.k_max >= 1, f"{at}.k_max", self.k_max, "at least 1")
        require(self.epochs is None or self.epochs >= 1, f"{at}.epochs", self.epochs, "at least 1")

    def runs_before(self, epoch: int) -> bool:
        """Whether to detect before this epoch of a span."""
        return self.enabled and (self.epochs is None or epoch < self.epochs)


def divergence(interests: Interests, items: torch.Tensor) -> torch.Tensor:
    """KL(uniform || p(h_k | e_i)) of Eq. 11-12; small if an item fits all interests equally.

    Args:
        interests: B users with at least one interest, ``[B, K, d]``.
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
    """max_k cos(h_k, e_i), the cosine between an item and the nearest interest.

    Args:
        interests: B users with at least one interest, ``[B, K, d]``.
        items: ``[B, L, d]``, embeddings e_i.

    Returns:
        ``[B, L]``, -1 to 1.
    """
    lengths = items.norm(dim=-1).unsqueeze(-1) * interests.vectors.norm(dim=-1).unsqueeze(1)
    # Dividing the products saves a pass over the items, which are d times as many numbers.
    # The square of a very short vector underflows, its products do not: the clamp makes its cosines small.
    cosines = items @ interests.vectors.mT / lengths.clamp(min=_SHORTEST)  # [B, L, K]
    # amax needs a column, and a rank without users in a step has none.
    return pad(cosines.masked_fill(~interests.mask.unsqueeze(1), -1), (0, 1), value=-1).amax(-1)


def percentile(interests: Interests, items: torch.Tensor, null: torch.Tensor) -> torch.Tensor:
    """The share of other items whose largest cosine with the user's interests is smaller than the item's own.

    Args:
        interests: B users with at least one interest, ``[B, K, d]``.
        items: ``[B, L, d]``, embeddings e_i.
        null: ``[N, d]``, the embeddings of the other items.

    Returns:
        ``[B, L]``, 0 to 1; 1 without other items.
    """
    own = largest_cosine(interests, items)
    if not len(null):
        return torch.ones_like(own)
    vectors, mask = pad(interests.vectors, (0, 0, 0, 1)), pad(interests.mask, (0, 1))  # amax needs a row
    cosines = normalize(vectors, dim=-1) @ normalize(null, dim=-1).T  # [B, K + 1, N]
    others = _sort_rows(cosines.masked_fill_(~mask.unsqueeze(-1), -1).amax(1))
    return torch.searchsorted(others, own.contiguous()).to(own.dtype) / len(null)


def _sort_rows(values: torch.Tensor) -> torch.Tensor:
    """Each row in ascending order; on the host by NumPy, whose sort uses vector instructions that torch's does not."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.detach().numpy(), axis=1))
    return values.sort(1).values


def item_fit(interests: Interests, items: torch.Tensor, config: DetectorConfig, null: torch.Tensor) -> torch.Tensor:
    """How well items fit users' interests, by ``config.measure``; the smaller, the more puzzling.

    Args:
        interests: B users with at least one interest, ``[B, K, d]``.
        items: ``[B, L, d]``, embeddings e_i.
        config: selects the measure.
        null: ``[N, d]``, the embeddings that ``percentile`` compares with.

    Returns:
        ``[B, L]``.
    """
    if config.measure == "percentile":
        return percentile(interests, items, null)
    return (divergence if config.measure == "divergence" else largest_cosine)(interests, items)


def densest_items(items: torch.Tensor, puzzling: torch.Tensor, count: int) -> torch.Tensor:
    """Where new interests start (erratum E3b): the puzzling items that most others are close to.

    The first is the item with the largest sum of positive cosines to the puzzling ones; those count less for the next
    one, the closer they are to the first, and so on.

    Args:
        items: ``[B, L, d]``, embeddings e_i.
        puzzling: ``[B, L]`` bool.
        count: the number of items for each user.

    Returns:
        ``[B, count, d]``, of length 1; zero for a user without further puzzling items.
    """
    directions = normalize(items, dim=-1)
    similar = (directions @ directions.mT).clamp(min=0)  # [B, L, L]
    left, found = puzzling.to(items.dtype), []
    for _ in range(count):
        density = (similar @ left.unsqueeze(-1)).squeeze(-1) * left
        best = pad(density, (0, 1)).argmax(1).clamp(max=max(items.shape[1] - 1, 0))
        index = best.view(-1, 1, 1).expand(-1, 1, items.shape[2])
        some = pad(density, (0, 1)).amax(1) > _SHORTEST
        found.append(directions.gather(1, index) * some.view(-1, 1, 1))
        near = similar.gather(1, best.view(-1, 1, 1).expand(-1, 1, similar.shape[2])).squeeze(1)
        left = (left * (1 - near)).clamp(min=0)
    return torch.cat(found, 1)


def user_fit(fit: torch.Tensor, mask: torch.Tensor, config: DetectorConfig) -> torch.Tensor:
    """The value that ``config.rule`` compares with c1: users below it are puzzled and need new interests (Eq. 14).

    The paper's P(i) = -KL is never positive, so "mean P > c1" would never hold for c1 > 0. Erratum E3: a user is
    puzzled if the mean divergence is *below* c1. The other rules require more than n items below c1; equivalently, the
    (n + 1)-th smallest fit is below c1.

    Args:
        fit: ``[B, L]``, the fit of each item.
        mask: ``[B, L]`` bool, false for padding.
        config: selects the rule.

    Returns:
        ``[B]``; infinite for a user with too few items to be puzzled.
    """
    count = mask.sum(1)
    if config.rule == "mean":
        return ((fit * mask).sum(1) / count.clamp(min=1)).masked_fill(count == 0, torch.inf)
    position = (config.share * count).long() if config.rule == "share" else torch.full_like(count, config.items)
    ordered = pad(_sort_rows(fit.masked_fill(~mask, torch.inf)), (0, 1), value=torch.inf)
    return ordered.gather(1, position.clamp(max=fit.shape[1]).unsqueeze(1)).squeeze(1)
