"""A strategy outside of the package: fine-tuning whose interests are anchored to what they were.

python launch/train.py --import examples.my_strategy --strategy.name anchored --strategy.anchored.weight 0.5 \
    --config configs/demo.yaml --run_dir runs/anchored
"""

from dataclasses import dataclass

from dist_imsr.strategies import Strategy, register_strategy


@dataclass
class AnchoredConfig:
    """The options of anchored.

    Args:
        weight: of the squared distance between a user's interests before and after the span.
    """

    weight: float = 0.1

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"strategy.anchored.weight: {self.weight} is impossible here; expected at least 0")


@register_strategy("anchored", AnchoredConfig)
class Anchored(Strategy):
    """Trains on each span's interactions, with a penalty on how far existing interests move."""

    def __init__(self, config):
        self.config = config

    def train_span(self, trainer, span):
        """The steps of fine-tuning; checkpoints, resuming and early stopping come with them."""
        if span == 0:
            return trainer.pretrain(self)
        trainer.add_items(span)
        data = trainer.open_span(span)
        trainer.admit_users(data)
        trainer.set_learning_rates(pretraining=False)
        for _ in trainer.epochs(pretraining=False):
            losses = trainer.train_epoch(data, self)
            trainer.end_epoch(losses, trainer.validate(data, self))
        trainer.restore_best()
        trainer.write_back(data, self)
        return trainer.report()

    def extra_loss(self, model, batch, extraction, scores):
        """The penalty, once for each target, as Eq. 6 is summed over targets."""
        moved = (extraction.interests.vectors - extraction.start.interests.vectors).square().sum(-1)  # [B, K]
        return self.config.weight * ((moved * extraction.existing).sum(1) * scores.target_mask.sum(1)).sum()
