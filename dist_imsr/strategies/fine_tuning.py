"""FT: inherit everything, train on the new interactions alone (Section III of the paper)."""

from dist_imsr.strategies.base import Strategy


def fine_tuning() -> Strategy:
    """Trains all parameters on each span's interactions, routing from the stored interests.

    Cost per span: the epochs over that span's interactions, and one pass that writes its users' interests back.

    Returns:
        The strategy.
    """
    return Strategy()
