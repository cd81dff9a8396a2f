"""No update after pre-training: the floor that every incremental method must beat."""

from dist_imsr.strategies.interests import InterestPolicy


class Frozen:
    """Keeps parameters and interests as pre-training left them; costs nothing per span.

    A user whom span 0 did not hold has no interests: every item scores zero and ties, which is a miss.
    """

    interests = InterestPolicy.plain()
    retrains = False
    counts = None

    def updates(self, span: int) -> bool:
        """True for the pre-training span alone."""
        return span == 0
