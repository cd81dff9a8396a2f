"""FR: a new model for each span, trained on all interactions so far (Section V of the paper): the upper bound."""

from dataclasses import dataclass, field
from pathlib import Path

from dist_imsr.data.dataset import Dataset
from dist_imsr.data.joined import JoinedSpans
from dist_imsr.keys import never
from dist_imsr.strategies.base import Strategy, register_strategy
from dist_imsr.strategies.counts import InterestCounts
from dist_imsr.strategies.resources import Resources
from dist_imsr.strategies.span_trainer import SpanReport, SpanTrainer


@dataclass
class FullRetrainingConfig:
    """The number of interests per user in a new model.

    Args:
        interests_from: the folder of a run over the same data that exported every span; each user gets the number of
            interests that this run ended the same span with. By default all users get ``model.interests``.
    """

    interests_from: Path | None = field(default=None, metadata=never())


@register_strategy("full_retraining", FullRetrainingConfig)
class FullRetraining(Strategy):
    """Draws all parameters and interests from scratch for each span and trains them on the spans up to it.

    Each span takes the epochs and the learning rates of pre-training. Cost per span: these epochs over all interactions
    so far, so it grows with every span.

    Args:
        config: the strategy's section.
    """

    def __init__(self, config: FullRetrainingConfig) -> None:
        self.counts = InterestCounts(config.interests_from) if config.interests_from else None

    def train_span(self, trainer: SpanTrainer, span: int) -> SpanReport:
        """Trains a new model on all spans so far, as pre-training does on the first."""
        if span and not trainer.progress.begun:
            trainer.rebuild_model(span)
        trainer.add_items(span)
        data = trainer.open_span(span, JoinedSpans)
        trainer.admit_users(data, self.counts.after(trainer.dataset, span, data.users) if self.counts else None)
        trainer.set_learning_rates(pretraining=True)
        for _ in trainer.epochs(pretraining=True):
            loss = trainer.train_epoch(data, self)
            trainer.end_epoch(loss, trainer.validate(data, self))
        trainer.restore_best()
        trainer.write_back(data, self)
        return trainer.report()

    def check(self, dataset: Dataset, spans: range) -> None:
        """Refuses retired spans, and an ``interests_from`` of other data or without the spans to train."""
        if spans and dataset.first_kept:
            raise ValueError(
                f"strategy.name: full_retraining trains on all spans, but {dataset.retired_rows}: prepare the whole "
                "log again, into another folder, or train with another strategy"
            )
        if self.counts is not None:
            self.counts.check(dataset, spans)

    def resources(self) -> Resources:
        """Each span retrains on all spans up to it."""
        return Resources(retrains=True, writes_all_users=True, reads_history=True)
