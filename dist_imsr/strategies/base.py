"""What the span loop asks of a strategy."""

from typing import Protocol

from dist_imsr.strategies.full_retraining import InterestCounts
from dist_imsr.strategies.interests import InterestPolicy


class Strategy(Protocol):
    """Decides what moves when a span arrives."""

    interests: InterestPolicy
    """What becomes of existing and of new interests."""

    @property
    def retrains(self) -> bool:
        """Whether a span begins with new parameters and interests, and its data are those of all spans up to it."""
        ...

    @property
    def counts(self) -> InterestCounts | None:
        """How many interests users get whom the store does not know; ``model.interests`` without it."""
        ...

    def updates(self, span: int) -> bool:
        """Whether parameters and interests move in a span.

        Args:
            span: 0 is the pre-training span.

        Returns:
            True where the span loop trains and writes interests back.
        """
        ...
