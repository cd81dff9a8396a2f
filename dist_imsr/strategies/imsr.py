"""IMSR: inherit everything, train on the new interactions alone, grow and keep interests (Section IV of the paper)."""

from dist_imsr.strategies.base import Strategy
from dist_imsr.strategies.interests import InterestPolicy


def imsr(config: InterestPolicy) -> Strategy:
    """Trains all parameters on each span's interactions; detector, trimmer, retainer and carried evidence as set.

    Cost per span: that of fine-tuning, plus a pass over the span's items that detects, a K x K system and two dot
    products per target and interest in each step, and two passes over the rank's store that expand and trim it.

    Args:
        config: the strategy's section.

    Returns:
        The strategy.
    """
    return Strategy(interests=config)
