"""Strategies update the model when a span arrives: one file for each, registered by its name."""

from dist_imsr.strategies import (  # noqa: F401 (register)
    ader,
    fine_tuning,
    fine_tuning_with_history,
    frozen,
    full_retraining,
    imsr,
    life_long,
    sml,
)
from dist_imsr.strategies.base import STRATEGIES, Strategy, register_strategy
from dist_imsr.strategies.config import StrategyConfig, build_strategy, resources_of
from dist_imsr.strategies.training_config import TrainingConfig

__all__ = [
    "STRATEGIES",
    "Strategy",
    "StrategyConfig",
    "TrainingConfig",
    "build_strategy",
    "register_strategy",
    "resources_of",
]
