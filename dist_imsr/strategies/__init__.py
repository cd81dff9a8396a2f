"""What happens to the model when a span arrives: one file for each strategy, registered by its name."""

from dist_imsr.strategies import ader, fine_tuning, frozen, full_retraining, imsr, life_long, sml  # noqa: F401 (register)
from dist_imsr.strategies.base import STRATEGIES, Strategy, register_strategy
from dist_imsr.strategies.config import StrategyConfig, TrainingConfig, build_strategy, resources_of

__all__ = [
    "STRATEGIES",
    "Strategy",
    "StrategyConfig",
    "TrainingConfig",
    "build_strategy",
    "register_strategy",
    "resources_of",
]
