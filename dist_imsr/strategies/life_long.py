"""Life-long models: parameters are fixed after pre-training, and only interests are updated."""

from dist_imsr.strategies.base import Strategy, register_strategy
from dist_imsr.strategies.resources import Resources
from dist_imsr.strategies.span_trainer import SpanReport, SpanTrainer


@register_strategy("life_long")
class LifeLong(Strategy):
    """Updates the interests of each span's users with the pre-trained parameters, the strategy of MIMN and LimaRec.

    Cost per span: one pass that writes its users' interests; nothing is trained. Base models with user states read all
    interactions of the span in this pass; the others read each user's latest ``batch.max_history``.
    """

    fixed_parameters = True

    def train_span(self, trainer: SpanTrainer, span: int) -> SpanReport:
        """Pre-trains, then only writes interests."""
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
