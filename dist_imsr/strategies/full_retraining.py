"""FR: learn everything again from all interactions so far (Section V of the paper); the ceiling, at a growing price."""

from dataclasses import dataclass, field
from pathlib import Path

from dist_imsr.data.joined import JoinedSpans
from dist_imsr.keys import never
from dist_imsr.strategies.base import Strategy
from dist_imsr.strategies.counts import InterestCounts


@dataclass
class FullRetrainingConfig:
    """How many interests users get when they are learnt again.

    Args:
        interests_from: the folder of a run over the same data that exported every span: each user gets as many as that
            run left after the same span; ``model.interests`` for everybody by default.
    """

    interests_from: Path | None = field(default=None, metadata=never(only_if=("strategy.name", "full_retraining")))


def full_retraining(config: FullRetrainingConfig) -> Strategy:
    """Draws all parameters and interests anew for each span and trains them on the spans up to it.

    Each span takes the epochs and the learning rates of pre-training.

    Cost per span: these epochs over all interactions so far, so it grows with every span.

    Args:
        config: the strategy's section.

    Returns:
        The strategy.
    """
    counts = InterestCounts(config.interests_from) if config.interests_from else None
    return Strategy(parameters="anew", counts=counts, data=JoinedSpans)
