"""The base class of strategies, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from dist_imsr.data.batch import Batch
from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.objective import Extraction, Scores
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.registry import Registry
from dist_imsr.strategies.resources import Resources

if TYPE_CHECKING:
    from dist_imsr.strategies.span_trainer import SpanReport, SpanTrainer

STRATEGIES: Registry[Callable[..., Strategy]] = Registry("strategy.name")


def register_strategy(name: str, config: type | None = None) -> Callable[[Any], Any]:
    """A decorator that makes a `Strategy` available as ``--strategy.name NAME``.

    Args:
        name: as users write it.
        config: the dataclass of the section ``strategy.NAME``, all of whose keys have defaults; the class is called
            with an instance of it. None where the strategy has no keys: the class is called without arguments.

    Returns:
        The decorator.
    """
    return STRATEGIES.register(name, config)


class Strategy(ABC):
    """Updates the model span by span.

    Only `train_span` is required. It receives a `SpanTrainer`, whose methods are the steps of strategies; `extract` and
    `extra_loss` define how these steps turn a batch into interests and losses.

    Attributes:
        fixed_parameters: whether parameters stay fixed after pre-training, as base models with user states require.
    """

    fixed_parameters: ClassVar[bool] = False

    @abstractmethod
    def train_span(self, trainer: SpanTrainer, span: int) -> SpanReport:
        """Updates the model with a span's interactions; collective.

        A run may resume in the middle of the span: then ``trainer.progress.begun`` is true, and `SpanTrainer.epochs`
        starts at the epoch of the checkpoint.

        Args:
            trainer: the model and the steps of training.
            span: 0 is the pre-training span.

        Returns:
            The keys of metrics.jsonl, as `SpanTrainer.report` returns them.
        """

    def extract(self, model: Recommender, batch: Batch, training: bool = False) -> Extraction:
        """Extracts the interests of a batch's users; by default with the base model alone (Eq. 1).

        Args:
            model: the model.
            batch: on this rank's device.
            training: whether the step will update parameters.

        Returns:
            The interests, with their inputs.
        """
        return model.extract(batch, training=training)

    def extra_loss(
        self, model: Recommender, batch: Batch, extraction: Extraction, scores: Scores
    ) -> torch.Tensor | None:
        """A loss that is added to Eq. 6.

        Args:
            model: the model.
            batch: on this rank's device.
            extraction: of the batch.
            scores: of its targets and negatives.

        Returns:
            A scalar, summed over this rank's targets; None for none.
        """
        return None

    def check(self, dataset: Dataset, spans: range) -> None:  # noqa: B027 (most strategies take any data)
        """Refuses data that the strategy cannot work with, before anything heavy starts.

        Args:
            dataset: the prepared data.
            spans: those that will be trained; empty if nothing is left to train.

        Raises:
            ValueError: naming the key or the file.
        """

    def state(self) -> dict[str, ShardRows]:
        """The tensors that the strategy keeps between spans, by name; checkpoints save and load them in place.

        Returns:
            Empty by default, and before `initialize_state`.
        """
        return {}

    def initialize_state(self, model: Recommender) -> None:  # noqa: B027 (most strategies keep nothing)
        """Allocates the tensors of `state`, before a checkpoint is loaded into them; collective."""

    def resources(self) -> Resources:
        """The resources that the strategy needs besides the model, for launch/plan.py."""
        return Resources()
