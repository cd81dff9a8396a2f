"""Life-long models: parameters stay as pre-training left them, and users' interests move with what they do."""

from dist_imsr.strategies.base import Strategy


def life_long() -> Strategy:
    """Writes the interests of each span's users with parameters that pre-training fixed, as MIMN and LimaRec are meant.

    Cost per span: one pass that writes its users' interests back; nothing is trained. The pass takes all interactions
    of the span under base models that keep a state, whose interests go on from it; the latest ``batch.max_history`` of
    each user under the others, which make interests of these alone.

    Returns:
        The strategy.
    """
    return Strategy(parameters="first")
