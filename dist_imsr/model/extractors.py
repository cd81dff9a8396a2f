"""Multi-interest extractors: a user's items in, a user's interests out (Eq. 1)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from dist_imsr.checks import require
from dist_imsr.keys import never
from dist_imsr.model.base import Extractor
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.linear_attention import LimaRecConfig, LinearAttention
from dist_imsr.model.mimn import MemoryNetwork, MIMNConfig


@dataclass
class ModelConfig:
    """The base model.

    Args:
        base: the multi-interest extractor: dynamic routing as in ComiRec-DR or MIND, ComiRec's self-attention, or one
            that keeps a state of each user's life, under the strategies life_long and frozen: mimn or limarec.
        dim: d, the width of item embeddings and interests.
        interests: K_u^0, the interests that a new user gets; the slots of mimn, the heads of limarec.
        iterations: L of Eq. 4, the rounds of routing.
        normalise: over what the routing weights of Eq. 4 sum to one (erratum E1).
        logit_scale: the deviation of MIND's random routing logits.
        query_dim: d_a of Eq. 7, the width of ComiRec-SA's queries.
        positions: ComiRec-SA's trainable position embeddings, for histories up to this length; 0 for none.
        score: f_score of Eq. 2, attentive over interests (Eq. 5) or the largest dot product.
        mimn: the memory of mimn.
        limarec: the linear attention of limarec.
    """

    base: Literal["comirec_dr", "mind", "comirec_sa", "mimn", "limarec"] = field(
        default="comirec_dr", metadata=never(compare="grid")
    )
    dim: int = 64
    interests: int = 4
    iterations: int = 3
    normalise: Literal["interests", "items"] = "interests"
    logit_scale: float = 1.0
    query_dim: int = 64
    positions: int = 0
    score: Literal["attentive", "max"] = field(default="attentive", metadata=never(compare="shared"))
    mimn: MIMNConfig = field(default_factory=MIMNConfig)
    limarec: LimaRecConfig = field(default_factory=LimaRecConfig)

    def __post_init__(self) -> None:
        require(self.dim >= 4 and self.dim % 4 == 0, "model.dim", self.dim, "a multiple of 4 (the table kernels' need)")
        require(self.interests >= 1, "model.interests", self.interests, "at least 1")
        require(self.iterations >= 1, "model.iterations", self.iterations, "at least 1")
        require(self.logit_scale >= 0, "model.logit_scale", self.logit_scale, "at least 0")
        require(self.query_dim >= 1, "model.query_dim", self.query_dim, "at least 1")
        require(self.positions >= 0, "model.positions", self.positions, "at least 0")
        if self.base == "mimn":
            self.mimn.check(self.interests)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "ModelConfig":
        """The section of plain values, as a run's config.yaml holds it.

        Args:
            plain: values by key, those of its own sections one level down; defaults where there are none.

        Returns:
            The section.

        Raises:
            TypeError: for an unknown key.
            ValueError: for an impossible value.
        """
        own = MIMNConfig(**plain.get("mimn", {})), LimaRecConfig(**plain.get("limarec", {}))
        return cls(**plain | dict(zip(("mimn", "limarec"), own, strict=True)))


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


class DynamicRouting(Extractor):
    """Behaviour-to-interest routing (Eq. 3-4) with one shared map W, as in ComiRec-DR and MIND.

    Errata E1 and E2 of the paper are read here: routing weights sum to one over the interests by default, and the
    routing starts from the stored interests instead of zero (from which all interests would stay equal). As in the
    code of MIND and ComiRec, agreement is measured between e^_i = W e_i and h_k, and the routing weights carry no
    gradient: only the last round's sum does, through e^_i. Before squashing, an existing interest adds its stored
    vector, rho h_k^{t-1} (erratum E10).

    MIND ("Multi-Interest Network with Dynamic Routing for Recommendation at Tmall", CIKM 2019) adds random logits to
    every agreement; ComiRec-DR ("Controllable Multi-Interest Framework for Recommendation", KDD 2020) adds none.

    Args:
        dim: d, the width of embeddings and interests.
        iterations: L of Eq. 4.
        normalise: the axis over which the weights c_ik sum to one.
        logit_scale: the deviation of the random logits that `Start` is to hold; 0 for none.
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
        votes = self.transform(items)  # [B, L, d], e^_i of Eq. 3
        evidence = 0 if start.carried is None else start.carried.unsqueeze(-1) * start.interests.vectors
        with torch.no_grad():
            interests = start.interests.vectors
            weights = self._weights(votes, mask, interests, start)
            for _ in range(self.iterations - 1):
                interests = squash((weights @ votes).to(items.dtype) + evidence)
                weights = self._weights(votes, mask, interests, start)
        # Votes are bf16 under autocast; evidence and squashing stay in the items' own precision.
        return start.interests.replace(squash((weights @ votes).to(items.dtype) + evidence))

    def _weights(self, votes: torch.Tensor, mask: torch.Tensor, interests: torch.Tensor, start: Start) -> torch.Tensor:
        """c_ik of Eq. 4, ``[B, K, L]``; zero for padding."""
        both = start.interests.mask.unsqueeze(-1) & mask.unsqueeze(-2)
        agreement = interests.to(votes.dtype) @ votes.mT
        if start.logits is not None:
            agreement = agreement + start.logits
        agreement = agreement.masked_fill(~both, torch.finfo(votes.dtype).min)
        return (agreement.softmax(-2 if self.normalise == "interests" else -1) * both).to(votes.dtype)


class SelfAttention(Extractor):
    """ComiRec-SA with queries of each user's own (Eq. 7-9): W_1 is shared, W_u stands beside the user's interests.

    An existing interest joins the sequence as one more item for itself alone, with log rho added to its logit (erratum
    E10), so that rho counts copies of it.

    Args:
        dim: d, the width of embeddings and interests.
        query_dim: d_a, the width of queries.
        positions: trainable position embeddings are added to the embeddings that are attended with, not to those that
            are summed, for histories up to this length, the oldest item first; 0 for none.
    """

    def __init__(self, dim: int, query_dim: int, positions: int = 0) -> None:
        super().__init__()
        self.query_dim = query_dim
        self.transform = nn.Linear(dim, query_dim, bias=False)  # W_1
        self.positions = nn.Parameter(torch.zeros(positions, dim)) if positions else None

    def forward(self, items: torch.Tensor, mask: torch.Tensor, start: Start) -> Interests:
        """Attends to items; shapes as in `Extractor`."""
        stored, queries = start.interests, start.queries
        assert queries is not None
        placed = items if self.positions is None else items + self.positions[: items.shape[1]]
        logits = (queries @ torch.tanh(self.transform(placed)).mT).to(items.dtype)  # [B, K, L]
        logits = logits.masked_fill(~mask.unsqueeze(1), torch.finfo(items.dtype).min)
        if start.carried is None:
            return stored.replace((logits.softmax(-1) @ items).to(items.dtype))
        own = (queries * torch.tanh(self.transform(stored.vectors))).sum(-1).to(items.dtype) + start.carried.log()
        weights = torch.cat([logits, own.unsqueeze(-1)], -1).softmax(-1)
        return stored.replace((weights[..., :-1] @ items).to(items.dtype) + weights[..., -1:] * stored.vectors)


BASES: dict[str, Callable[[ModelConfig], Extractor]] = {
    "comirec_dr": lambda config: DynamicRouting(config.dim, config.iterations, config.normalise),
    "mind": lambda config: DynamicRouting(config.dim, config.iterations, config.normalise, config.logit_scale),
    "comirec_sa": lambda config: SelfAttention(config.dim, config.query_dim, config.positions),
    "mimn": lambda config: MemoryNetwork(config.dim, config.interests, config.mimn),
    "limarec": lambda config: LinearAttention(config.dim, config.interests, config.limarec.features),
}


def build_extractor(config: ModelConfig) -> Extractor:
    """Builds the base model that a configuration names.

    Args:
        config: the model's section.

    Returns:
        The extractor, with the same first weights in every process that builds it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BASES[config.base](config)
