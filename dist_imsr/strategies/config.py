"""The sections of training and of its strategy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dist_imsr.checks import require
from dist_imsr.keys import free, later_spans, never
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
            learns everything again from all interactions so far; fine_tuning trains on each span's new interactions;
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
    """Builds the strategy that a configuration names.

    Args:
        config: the strategy's section.

    Returns:
        The strategy.
    """
    build, own = STRATEGIES[config.name]
    if own is None:
        return build()
    return build(getattr(config, config.name) if hasattr(config, config.name) else own())


def resources_of(config: StrategyConfig) -> Resources:
    """What the strategy that a configuration names takes.

    Args:
        config: the strategy's section.

    Returns:
        Its resources.
    """
    return build_strategy(config).resources()


@dataclass
class TrainingConfig:
    """How long to train, and when to stop.

    Args:
        epochs: at most, in the pre-training span, and in each span of full_retraining.
        incremental_epochs: at most, in every later span.
        patience: epochs without a better validation before the best state is restored; 0 trains all epochs and keeps
            the last.
        metric: what validation measures on each user's second last interaction of the span.
        validation_users: about so many users of a span are validated on, where there are more.
        spans: how many spans are trained after the pre-training span; all by default, 0 for pre-training alone. A run
            may be prolonged: the same command with more of them continues it.
        export: of which spans interests, items and the detector's findings are written under run_dir/spans/; the last
            trained one is what launch/recommend.py and launch/export.py read.
    """

    epochs: int = 50
    incremental_epochs: int = field(default=15, metadata=later_spans(compare="shared"))
    patience: int = field(default=5, metadata=never(compare="shared"))
    metric: Literal["ndcg", "mrr"] = field(default="ndcg", metadata=never(compare="shared"))
    validation_users: int = field(default=2000, metadata=never(compare="shared"))
    spans: int | None = field(default=None, metadata=free(compare="shared"))
    export: Literal["none", "last", "every"] = field(default="last", metadata=free(compare="grid"))

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "training.epochs", self.epochs, "at least 1")
        require(self.incremental_epochs >= 1, "training.incremental_epochs", self.incremental_epochs, "at least 1")
        require(self.patience >= 0, "training.patience", self.patience, "at least 0")
        require(self.validation_users >= 1, "training.validation_users", self.validation_users, "at least 1")
        require(self.spans is None or self.spans >= 0, "training.spans", self.spans, "at least 0")

    def last(self, spans: int) -> int:
        """The last span that is trained.

        Args:
            spans: how many the data have, the pre-training span included.

        Returns:
            Its number; the last of the data is for testing alone.

        Raises:
            ValueError: if more are asked for than there are.
        """
        most = spans - 2
        wanted = most if self.spans is None else self.spans
        require(wanted <= most, "training.spans", self.spans, f"at most {most} with these data")
        return wanted
