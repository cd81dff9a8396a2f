"""FT: inherit everything, train on the new interactions alone (Section III of the paper)."""

from dist_imsr.strategies.base import Strategy, register_strategy
from dist_imsr.strategies.span_trainer import SpanReport, SpanTrainer


@register_strategy("fine_tuning")
class FineTuning(Strategy):
    """Trains all parameters on each span's interactions, routing from the stored interests.

    Cost per span: the epochs over that span's interactions, and one pass that writes its users' interests back.
    """

    def train_span(self, trainer: SpanTrainer, span: int) -> SpanReport:
        """Trains with early stopping, then writes the interests of the span's users."""
        if span == 0:
            return trainer.pretrain(self)
        trainer.add_items(span)
        data = trainer.open_span(span)
        trainer.admit_users(data)
        trainer.set_learning_rates(pretraining=False)
        for _ in trainer.epochs(pretraining=False):
            loss = trainer.train_epoch(data, self)
            trainer.end_epoch(loss, trainer.validate(data, self))
        trainer.restore_best()
        trainer.write_back(data, self)
        return trainer.report()
