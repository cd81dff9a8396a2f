"""FT with history: fine-tuning that may read every user's earlier interactions, which IMSR does without."""

from dist_imsr.data.dataset import Dataset
from dist_imsr.data.joined import SpanWithHistory
from dist_imsr.strategies.base import Strategy, register_strategy
from dist_imsr.strategies.resources import Resources
from dist_imsr.strategies.span_trainer import SpanReport, SpanTrainer


@register_strategy("fine_tuning_with_history")
class FineTuningWithHistory(Strategy):
    """Fine-tuning on each span's targets, with histories that continue into the spans before.

    A reference for IMSR: this strategy reads the old interactions that IMSR carries evidence of. Each span
    ends with the interests of all users so far, extracted from their latest interactions with the new parameters.

    Cost per span: that of fine-tuning on longer histories, and one pass over all users, so it grows with the users.
    """

    def train_span(self, trainer: SpanTrainer, span: int) -> SpanReport:
        """Trains with early stopping, then writes the interests of all users."""
        if span == 0:
            return trainer.pretrain(self)
        trainer.add_items(span)
        data = trainer.open_span(span, SpanWithHistory)
        trainer.admit_users(data)
        trainer.set_learning_rates(pretraining=False)
        for _ in trainer.epochs(pretraining=False):
            loss = trainer.train_epoch(data, self)
            trainer.end_epoch(loss, trainer.validate(data, self))
        trainer.restore_best()
        trainer.write_back(data, self)
        return trainer.report()

    def check(self, dataset: Dataset, spans: range) -> None:
        """Refuses retired spans, into which histories continue."""
        if spans and dataset.first_kept:
            raise ValueError(
                f"strategy.name: fine_tuning_with_history reads all spans, but {dataset.retired_rows}: prepare the "
                "whole log again, into another folder, or train with another strategy"
            )

    def resources(self) -> Resources:
        """Each span writes all users' interests."""
        return Resources(writes_all_users=True, reads_history=True)
