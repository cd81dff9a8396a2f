"""Multi-interest extractors: a user's items in, a user's interests out (Eq. 1)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn

from dist_imsr.config import require
from dist_imsr.model.interests import Interests


class Extractor(Protocol):
    """f_user of Eq. 1: what every base model offers."""

    def __call__(self, items: torch.Tensor, mask: torch.Tensor, start: Interests) -> Interests:
        """Extracts the interests of a block of users.

        Args:
            items: ``[B, L, d]`` floating, embeddings e_i of each user's history in time order.
            mask: ``[B, L]`` bool, false where ``items`` is padding.
            start: the stored interests H_u^{t-1}, ``[B, K, d]``.

        Returns:
            H_u^t in the slots of ``start``.
        """
        ...


@dataclass
class ModelConfig:
    """The base model.

    Args:
        base: the multi-interest extractor.
        dim: d, the width of item embeddings and interests.
        interests: K_u^0, the interests that a new user gets.
        iterations: L of Eq. 4, the rounds of routing.
        normalise: over what the routing weights of Eq. 4 sum to one (erratum E1).
        score: f_score of Eq. 2, attentive over interests (Eq. 5) or the largest dot product.
    """

    base: Literal["comirec_dr"] = "comirec_dr"
    dim: int = 64
    interests: int = 4
    iterations: int = 3
    normalise: Literal["interests", "items"] = "interests"
    score: Literal["attentive", "max"] = "attentive"

    def __post_init__(self) -> None:
        require(self.dim >= 4 and self.dim % 4 == 0, "model.dim", self.dim, "a multiple of 4 (the table kernels' need)")
        require(self.interests >= 1, "model.interests", self.interests, "at least 1")
        require(self.iterations >= 1, "model.iterations", self.iterations, "at least 1")


def squash(vectors: torch.Tensor) -> torch.Tensor:
    """Phi of Eq. 4: keeps the direction, brings the norm n to n^2 / (1 + n^2).

    Args:
        vectors: ``[..., d]`` floating.

    Returns:
        ``[..., d]``, every norm below 1; zero stays zero, with a finite gradient.
    """
    square = vectors.square().sum(-1, keepdim=True)
    tiny = torch.finfo(vectors.dtype).tiny
    return vectors * (square + tiny).sqrt() / (1 + square)


class DynamicRouting(nn.Module):
    """Behaviour-to-interest routing of ComiRec-DR (Eq. 3-4) with one shared map W.

    Errata E1 and E2 of the paper are read here: routing weights sum to one over the interests by default, and the
    routing starts from the stored interests instead of zero (from which all interests would stay equal). As in the
    code of MIND and ComiRec, agreement is measured between e^_i = W e_i and h_k, and the routing weights carry no
    gradient: only the last round's sum does, through e^_i.

    Args:
        dim: d, the width of embeddings and interests.
        iterations: L of Eq. 4.
        normalise: the axis over which the weights c_ik sum to one.
    """

    def __init__(self, dim: int, iterations: int = 3, normalise: Literal["interests", "items"] = "interests") -> None:
        super().__init__()
        self.iterations = iterations
        self.normalise = normalise
        self.transform = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.transform.weight)

    def forward(self, items: torch.Tensor, mask: torch.Tensor, start: Interests) -> Interests:
        """Routes items to interests; shapes as in `Extractor`."""
        votes = self.transform(items)  # [B, L, d], e^_i of Eq. 3
        with torch.no_grad():
            interests = start.vectors.to(votes.dtype)
            weights = self._weights(votes, mask, interests, start.mask)
            for _ in range(self.iterations - 1):
                interests = squash(weights @ votes)
                weights = self._weights(votes, mask, interests, start.mask)
        return start.replace(squash((weights @ votes).to(items.dtype)))  # votes are bf16 under autocast

    def _weights(
        self, votes: torch.Tensor, mask: torch.Tensor, interests: torch.Tensor, interest_mask: torch.Tensor
    ) -> torch.Tensor:
        """c_ik of Eq. 4, ``[B, K, L]``; zero for padding."""
        both = interest_mask.unsqueeze(-1) & mask.unsqueeze(-2)
        agreement = (interests @ votes.mT).masked_fill(~both, torch.finfo(votes.dtype).min)
        return agreement.softmax(-2 if self.normalise == "interests" else -1) * both


BASES: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "comirec_dr": lambda config: DynamicRouting(config.dim, config.iterations, config.normalise),
}


def build_extractor(config: ModelConfig) -> nn.Module:
    """Builds the base model that a configuration names.

    Args:
        config: the model's section.

    Returns:
        A module of the `Extractor` form, the same for every process that builds it.
    """
    return BASES[config.base](config)
