"""What the span loop asks of a strategy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from dist_imsr.data.span import SpanData
from dist_imsr.strategies.companion import Companion
from dist_imsr.strategies.counts import InterestCounts
from dist_imsr.strategies.interests import InterestPolicy


@dataclass(frozen=True)
class Strategy:
    """Decides what moves when a span arrives; fine-tuning where nothing else is said.

    Args:
        parameters: trained in the pre-training span alone, in every span from where they stand, or drawn anew for each
            span, together with the interests, and trained on all spans up to it.
        users: whether interests are written in the pre-training span alone or in every one.
        interests: what becomes of existing and of new interests.
        counts: how many interests users get whom the store does not know; ``model.interests`` without it.
        data: what a span's training reads; takes the arguments of `SpanData`.
        companion: what is kept beside a new model.
    """

    parameters: Literal["first", "every", "anew"] = "every"
    users: Literal["first", "every"] = "every"
    interests: InterestPolicy = field(default_factory=InterestPolicy.plain)
    counts: InterestCounts | None = None
    data: Callable[..., Any] = SpanData
    companion: Callable[[], Companion] = Companion

    @property
    def retrains(self) -> bool:
        """Whether a span begins with new parameters and interests, and its data are those of all spans up to it."""
        return self.parameters == "anew"

    def trains(self, span: int) -> bool:
        """Whether parameters are trained in a span.

        Args:
            span: 0 is the pre-training span.

        Returns:
            True where the span loop counts epochs.
        """
        return span == 0 or self.parameters != "first"

    def updates(self, span: int) -> bool:
        """Whether users' interests are written in a span.

        Args:
            span: 0 is the pre-training span.

        Returns:
            True where the span loop writes interests back.
        """
        return span == 0 or self.users == "every"
