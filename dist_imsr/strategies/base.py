"""What the span loop asks of a strategy."""

from typing import Protocol


class Strategy(Protocol):
    """Decides what moves when a span arrives."""

    def updates(self, span: int) -> bool:
        """Whether parameters and interests move in a span.

        Args:
            span: 0 is the pre-training span.

        Returns:
            True where the span loop trains and writes interests back.
        """
        ...
