"""What happens to the model when a span arrives: one file a strategy, one registry.

A new strategy is a file here and an entry in ``STRATEGIES`` and in the names of `StrategyConfig`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from dist_imsr.keys import later_spans
from dist_imsr.strategies.ader import ADERConfig, ader
from dist_imsr.strategies.base import Strategy
from dist_imsr.strategies.fine_tuning import fine_tuning
from dist_imsr.strategies.frozen import frozen
from dist_imsr.strategies.full_retraining import FullRetrainingConfig, full_retraining
from dist_imsr.strategies.imsr import imsr
from dist_imsr.strategies.interests import InterestPolicy
from dist_imsr.strategies.life_long import life_long
from dist_imsr.strategies.sml import SMLConfig, sml


@dataclass
class StrategyConfig:
    """The incremental strategy.

    Args:
        name: frozen keeps the pre-trained model as it is; life_long moves users' interests alone; full_retraining
            learns everything again from all interactions so far; fine_tuning trains on each span's new interactions;
            sml also transfers from the parameters of the span before, ader also replays earlier sequences, imsr also
            grows and keeps interests.
        imsr: the parts of imsr.
        sml: the options of sml.
        ader: the options of ader.
        full_retraining: the options of full_retraining.
    """

    name: Literal["frozen", "life_long", "full_retraining", "fine_tuning", "sml", "ader", "imsr"] = field(
        default="imsr", metadata=later_spans(compare="grid")
    )
    imsr: InterestPolicy = field(default_factory=InterestPolicy)
    sml: SMLConfig = field(default_factory=SMLConfig)
    ader: ADERConfig = field(default_factory=ADERConfig)
    full_retraining: FullRetrainingConfig = field(default_factory=FullRetrainingConfig)


STRATEGIES: dict[str, Callable[[StrategyConfig], Strategy]] = {
    "frozen": lambda config: frozen(),
    "life_long": lambda config: life_long(),
    "full_retraining": lambda config: full_retraining(config.full_retraining),
    "fine_tuning": lambda config: fine_tuning(),
    "sml": lambda config: sml(config.sml),
    "ader": lambda config: ader(config.ader),
    "imsr": lambda config: imsr(config.imsr),
}


def build_strategy(config: StrategyConfig) -> Strategy:
    """Builds the strategy that a configuration names.

    Args:
        config: the strategy's section.

    Returns:
        The strategy.
    """
    return STRATEGIES[config.name](config)
