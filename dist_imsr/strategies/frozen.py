"""No update after pre-training: the lower bound."""

from dist_imsr.strategies.base import Strategy, register_strategy
from dist_imsr.strategies.resources import Resources
from dist_imsr.strategies.span_trainer import SpanReport, SpanTrainer


@register_strategy("frozen")
class Frozen(Strategy):
    """Keeps the pre-trained parameters and interests.

    A user without interactions in span 0 has no interests: all items tie at score zero, which counts as a miss.
    Cost per span: none.
    """

    fixed_parameters = True

    def train_span(self, trainer: SpanTrainer, span: int) -> SpanReport:
        """Pre-trains, then does nothing."""
        if span == 0:
            return trainer.pretrain(self)
        trainer.add_items(span)
        return trainer.untrained_report()

    def resources(self) -> Resources:
        """Nothing is trained or written."""
        return Resources(trains=False, writes_interests=False)
