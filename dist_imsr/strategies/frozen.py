"""No update after pre-training: the floor that every incremental method must beat."""

from dist_imsr.strategies.base import Strategy


def frozen() -> Strategy:
    """Keeps parameters and interests as pre-training left them.

    A user whom span 0 did not hold has no interests: every item scores zero and ties, which is a miss.

    Cost per span: none.

    Returns:
        The strategy.
    """
    return Strategy(parameters="first", users="first")
