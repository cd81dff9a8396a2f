"""Dynamic routing, the extractor of ComiRec-DR and MIND."""

from typing import Literal

import torch
from torch import nn

from dist_imsr.model.base import Extractor
from dist_imsr.model.interests import Interests, Start


def squash(vectors: torch.Tensor) -> torch.Tensor:
    """Phi of Eq. 4: keeps the direction of vectors ``[..., d]`` and maps the norm n to n^2 / (1 + n^2).

    Zero stays zero, with a finite gradient.
    """
    square = vectors.square().sum(-1, keepdim=True)
    tiny = torch.finfo(vectors.dtype).tiny
    return vectors * (square + tiny).sqrt() / (1 + square)


class DynamicRouting(Extractor):
    """Behaviour-to-interest routing (Eq. 3-4) with one shared map W, as in ComiRec-DR and MIND.

    Errata E1 and E2: routing weights sum to one over the interests by default, and routing starts from the stored
    interests instead of zero (from which all interests would stay equal). As in the code of MIND and ComiRec, agreement
    is the dot product of e^_i = W e_i and h_k, and routing weights carry no gradient: only the sum of the last
    iteration does, through e^_i. Before squashing, rho h_k^{t-1} is added for an existing interest (erratum E10).

    MIND ("Multi-Interest Network with Dynamic Routing for Recommendation at Tmall", CIKM 2019) adds random logits to
    every agreement; ComiRec-DR ("Controllable Multi-Interest Framework for Recommendation", KDD 2020) adds none.

    Args:
        dim: d, the width of embeddings and interests.
        iterations: L of Eq. 4.
        normalise: the axis over which the weights c_ik sum to one.
        logit_scale: standard deviation of the random logits in `Start`; 0 for none.
    """

    def __init__(
        self,
        dim: int,
        iterations: int = 3,
        normalise: Literal["interests", "items"] = "interests",
        logit_scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.iterations, self.normalise, self.logit_scale = iterations, normalise, logit_scale
        self.transform = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.transform.weight)

    def forward(self, items: torch.Tensor, mask: torch.Tensor, start: Start) -> Interests:
        """Routes items to interests; shapes as in `Extractor`."""
        evidence = 0 if start.carried is None else start.carried.unsqueeze(-1) * start.interests.vectors
        with torch.no_grad():
            interests = start.interests.vectors
            weights = self._weights(items, mask, interests, start)
            for _ in range(self.iterations - 1):
                interests = squash(self._sum(weights, items) + evidence)
                weights = self._weights(items, mask, interests, start)
        return start.interests.replace(squash(self._sum(weights, items) + evidence))

    def _sum(self, weights: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """sum_i c_ik W e_i of Eq. 4, ``[B, K, d]``: W of the sums, of which there are fewer than items."""
        # Products are bf16 under autocast; evidence and squashing use the items' precision.
        return self.transform(weights @ items).to(items.dtype)

    def _weights(self, items: torch.Tensor, mask: torch.Tensor, interests: torch.Tensor, start: Start) -> torch.Tensor:
        """c_ik of Eq. 4, ``[B, K, L]``; zero for padding."""
        both = start.interests.mask.unsqueeze(-1) & mask.unsqueeze(-2)
        weight = self.transform.weight
        agreement = (interests.to(weight.dtype) @ weight) @ items.mT  # (W e_i) . h_k
        if start.logits is not None:
            agreement = agreement + start.logits
        agreement = agreement.masked_fill(~both, torch.finfo(agreement.dtype).min)
        return (agreement.softmax(-2 if self.normalise == "interests" else -1) * both).to(agreement.dtype)

    def forward_flops(self, users: int, length: int, slots: int) -> int:
        """W twice for each interest, and two products with the items, in each round; as in `Extractor`."""
        dim = self.transform.in_features
        return users * self.iterations * slots * (4 * dim * dim + 4 * length * dim)
