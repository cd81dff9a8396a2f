"""The base models by name, and their configuration."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeVar

import torch

from dist_imsr.checks import require
from dist_imsr.keys import never
from dist_imsr.model.base import Extractor
from dist_imsr.model.linear_attention import LimaRecConfig, LinearAttention
from dist_imsr.model.mimn import MemoryNetwork, MIMNConfig
from dist_imsr.model.routing import DynamicRouting
from dist_imsr.model.scoring import Scoring
from dist_imsr.model.self_attention import SelfAttention
from dist_imsr.registry import Registry

BASE_MODELS: Registry[Callable[["ModelConfig"], Extractor]] = Registry("model.base")
Build = TypeVar("Build", bound=Callable[["ModelConfig"], Extractor])


@dataclass
class ModelConfig:
    """The base model.

    Args:
        base: the multi-interest extractor. comirec_dr and mind: dynamic routing; comirec_sa: self-attention; mimn and
            limarec: recurrent states of each user, with the strategies life_long and frozen only; or one that an
            imported module registers.
        dim: d, the width of item embeddings and interests.
        interests: K_u^0, the interests of a new user; the slots of mimn, the heads of limarec.
        iterations: L of Eq. 4, the iterations of routing.
        normalise: the axis over which the routing weights of Eq. 4 sum to one (erratum E1).
        logit_scale: standard deviation of MIND's random routing logits.
        query_dim: d_a of Eq. 7, the width of ComiRec-SA's queries.
        positions: ComiRec-SA's trainable position embeddings, for histories up to this length; 0 for none.
        score: f_score of Eq. 2, attentive over interests (Eq. 5) or the largest dot product.
        score_scale: s of erratum E8b, by which dot products of interests and items are multiplied, in training and in
            ranking; 1 is the paper.
        item_bias: a trained number for each item that is added to its scores. In each span that is trained it starts at
            log(1 + the item's interactions so far, without those held out), since popularity changes faster than a
            span's training follows.
        popularity_decay: by which the interactions before a span count less for the biases that it starts with.
        mimn: the memory of mimn.
        limarec: the linear attention of limarec.
    """

    registry: ClassVar[Registry[Callable[["ModelConfig"], Extractor]]] = BASE_MODELS
    base: str = field(default="comirec_dr", metadata=never(compare="grid"))
    dim: int = 64
    interests: int = 4
    iterations: int = 3
    normalise: Literal["interests", "items"] = "interests"
    logit_scale: float = 1.0
    query_dim: int = 64
    positions: int = 0
    score: Literal["attentive", "max"] = field(default="attentive", metadata=never(compare="shared"))
    score_scale: float = 4.0
    item_bias: bool = True
    popularity_decay: float = 0.3
    mimn: MIMNConfig = field(default_factory=MIMNConfig)
    limarec: LimaRecConfig = field(default_factory=LimaRecConfig)

    def __post_init__(self) -> None:
        BASE_MODELS[self.base]  # refuses an unknown name
        require(self.dim >= 4 and self.dim % 4 == 0, "model.dim", self.dim, "a multiple of 4 (the table kernels' need)")
        require(self.interests >= 1, "model.interests", self.interests, "at least 1")
        require(self.iterations >= 1, "model.iterations", self.iterations, "at least 1")
        require(self.logit_scale >= 0, "model.logit_scale", self.logit_scale, "at least 0")
        require(self.query_dim >= 1, "model.query_dim", self.query_dim, "at least 1")
        require(self.positions >= 0, "model.positions", self.positions, "at least 0")
        require(self.score_scale > 0, "model.score_scale", self.score_scale, "above 0")
        decay = self.popularity_decay
        require(0 <= decay <= 1, "model.popularity_decay", decay, "0 to 1")
        if self.base == "mimn":
            self.mimn.check(self.interests)

    @property
    def scoring(self) -> Scoring:
        """How interests and items are scored."""
        return Scoring(self.score, self.score_scale, self.item_bias)

    @property
    def row_width(self) -> int:
        """The width of a row of the item table."""
        return self.scoring.row_width(self.dim)


def register_base_model(name: str, config: type | None = None) -> Callable[[Build], Build]:
    """A decorator that makes an extractor available as ``model.base``.

    It goes on a subclass of `Extractor` whose constructor takes the `ModelConfig`, or on a function that builds one:

        @register_base_model("mine", MyConfig)
        class MyExtractor(Extractor):
            def __init__(self, config: ModelConfig) -> None:
                super().__init__()
                own: MyConfig = config.mine

    Args:
        name: the value of ``model.base``.
        config: the dataclass of the section ``model.NAME``, whose keys all have defaults; None for no such section.

    Raises:
        ValueError: for a name that is taken or is not an identifier.
    """
    add = BASE_MODELS.register(name, config)

    def register(build: Build) -> Build:
        add(build)
        return build

    return register


@register_base_model("comirec_dr")
def _comirec_dr(config: ModelConfig) -> Extractor:
    return DynamicRouting(config.dim, config.iterations, config.normalise)


@register_base_model("mind")
def _mind(config: ModelConfig) -> Extractor:
    return DynamicRouting(config.dim, config.iterations, config.normalise, config.logit_scale)


@register_base_model("comirec_sa")
def _comirec_sa(config: ModelConfig) -> Extractor:
    return SelfAttention(config.dim, config.query_dim, config.positions)


@register_base_model("mimn", MIMNConfig)
def _mimn(config: ModelConfig) -> Extractor:
    return MemoryNetwork(config.dim, config.interests, config.mimn)


@register_base_model("limarec", LimaRecConfig)
def _limarec(config: ModelConfig) -> Extractor:
    return LinearAttention(config.dim, config.interests, config.limarec.features)


def build_extractor(config: ModelConfig) -> Extractor:
    """Builds the base model ``config.base``, with the same initial weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BASE_MODELS[config.base].build(config)
