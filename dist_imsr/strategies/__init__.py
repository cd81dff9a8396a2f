"""What happens to the model when a span arrives: one file a strategy, one registry.

A new strategy is a file here and an entry in ``STRATEGIES`` and in the names of `StrategyConfig`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dist_imsr.strategies.base import Strategy
from dist_imsr.strategies.fine_tuning import FineTuning
from dist_imsr.strategies.frozen import Frozen


@dataclass
class StrategyConfig:
    """The incremental strategy.

    Args:
        name: frozen keeps the pre-trained model as it is; fine_tuning trains on each span's new interactions.
    """

    name: Literal["frozen", "fine_tuning"] = "fine_tuning"


STRATEGIES: dict[str, Callable[[StrategyConfig], Strategy]] = {
    "frozen": lambda config: Frozen(),
    "fine_tuning": lambda config: FineTuning(),
}


def build_strategy(config: StrategyConfig) -> Strategy:
    """Builds the strategy that a configuration names.

    Args:
        config: the strategy's section.

    Returns:
        The strategy.
    """
    return STRATEGIES[config.name](config)
