"""FT: inherit everything, train on the new interactions alone (Section III of the paper)."""

from dist_imsr.strategies.interests import InterestPolicy


class FineTuning:
    """Trains all parameters on each span's interactions, routing from the stored interests.

    Cost per span: the epochs over that span's interactions, and one pass that writes its users' interests back.
    """

    interests = InterestPolicy.plain()
    retrains = False
    counts = None

    def updates(self, span: int) -> bool:
        """True for every span."""
        return True
