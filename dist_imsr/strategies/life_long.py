"""Life-long models: parameters stay as pre-training left them, users' interests follow their interactions."""

from dist_imsr.strategies.base import Strategy, register_strategy
from dist_imsr.strategies.resources import Resources
from dist_imsr.strategies.span_trainer import SpanReport, SpanTrainer


@register_strategy("life_long")
class LifeLong(Strategy):
    """Writes the interests of each span's users with pre-trained parameters, as MIMN and LimaRec are meant.

    Cost per span: one pass that writes its users' interests; nothing is trained. The pass reads all interactions of the
    span under base models that keep a state, whose interests continue from it, and the latest ``batch.max_history`` of
    each user under the others, which extract interests from these alone.
    """

    fixed_parameters = True

    def train_span(self, trainer: SpanTrainer, span: int) -> SpanReport:
        """Pre-trains, then writes interests alone."""
        if span == 0:
            return trainer.pretrain(self)
        trainer.add_items(span)
        data = trainer.open_span(span)
        trainer.admit_users(data)
        trainer.write_back(data, self)
        return trainer.report()

    def resources(self) -> Resources:
        """Nothing is trained."""
        return Resources(trains=False)
