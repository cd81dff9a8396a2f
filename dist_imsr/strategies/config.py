"""The section of the strategy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from dist_imsr.checks import require
from dist_imsr.keys import later_spans
from dist_imsr.registry import Registry
from dist_imsr.strategies.ader import ADERConfig
from dist_imsr.strategies.base import STRATEGIES, Strategy
from dist_imsr.strategies.full_retraining import FullRetrainingConfig
from dist_imsr.strategies.imsr import IMSRConfig
from dist_imsr.strategies.resources import Resources
from dist_imsr.strategies.sml import SMLConfig


@dataclass
class StrategyConfig:
    """The incremental strategy.

    Args:
        name: frozen keeps the pre-trained model as it is; life_long updates users' interests alone; full_retraining
            trains a new model on all interactions so far; fine_tuning trains on each span's new interactions;
            sml also transfers from the parameters of the span before, ader also replays earlier sequences, imsr also
            grows and keeps interests.
        imsr: the parts of imsr.
        sml: the options of sml.
        ader: the options of ader.
        full_retraining: the options of full_retraining.
    """

    registry: ClassVar[Registry[Callable[..., Strategy]]] = STRATEGIES
    name: str = field(default="imsr", metadata=later_spans(compare="grid"))
    imsr: IMSRConfig = field(default_factory=IMSRConfig)
    sml: SMLConfig = field(default_factory=SMLConfig)
    ader: ADERConfig = field(default_factory=ADERConfig)
    full_retraining: FullRetrainingConfig = field(default_factory=FullRetrainingConfig)

    def __post_init__(self) -> None:
        require(self.name in STRATEGIES, "strategy.name", self.name, f"one of {', '.join(STRATEGIES)}")


def build_strategy(config: StrategyConfig) -> Strategy:
    """Builds the strategy that a configuration names, with its own section."""
    build, own = STRATEGIES[config.name]
    if own is None:
        return build()
    return build(getattr(config, config.name) if hasattr(config, config.name) else own())


def resources_of(config: StrategyConfig) -> Resources:
    """The resources of the strategy that a configuration names."""
    return build_strategy(config).resources()
