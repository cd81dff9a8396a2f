"""Several spans joined into one training set, for retraining on all data so far."""

from collections.abc import Callable

import numpy as np
import torch

from dist_imsr.data.batch import Batch, BatchConfig
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.schedule import generator
from dist_imsr.data.span import SpanData
from dist_imsr.data.steps import Steps, chain_steps

_ORDER = 11  # a stream of random numbers


class JoinedSpans:
    """The spans up to one, of the users that a rank owns; histories continue across the borders of spans.

    An epoch cuts each user's sequence in each span once, so that its cost follows the number of interactions. As with a
    single span, the first interaction of a sequence is never a target. Only the last span holds out targets. Memory
    grows with the number of users and spans.

    Args:
        dataset: the prepared data.
        span: the last of the spans.
        buckets: the buckets that this rank owns.
        config: sizes of batches.
        seed: of shuffles, cuts and negatives.
        world_sum: sums an int64 tensor over ranks.
    """

    def __init__(
        self,
        dataset: Dataset,
        span: int,
        buckets: range,
        config: BatchConfig,
        seed: int,
        world_sum: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.span, self.config, self.seed = span, config, seed
        self._parts = list[SpanData]()
        for one in range(span + 1):
            part = SpanData(
                dataset=dataset,
                span=one,
                buckets=buckets,
                config=config,
                seed=seed,
                world_sum=world_sum,
                earlier=tuple(self._parts),
                until=span,
            )
            self._parts.append(part)
        self.users = np.unique(np.concatenate([part.users for part in self._parts]))

    def training(self, epoch: int) -> Steps[Batch]:
        """The steps of one epoch of training, those of all spans in random order.

        Args:
            epoch: together with the seed, the key of the order, the cuts and the negatives.

        Returns:
            The batches; collective when called, not when read.
        """
        each = [part.training(epoch) for part in self._parts]
        places = [(steps, step) for steps in each for step in range(len(steps))]
        if self.span:
            order = generator(_ORDER, self.seed, self.span, epoch).permutation(len(places))
            places = [places[place] for place in order]
        return chain_steps(places, self.config.prefetch)

    def validation(self, max_users: int) -> Steps[Batch]:
        """The validation targets of the last span, with histories that continue into earlier spans.

        Args:
            max_users: as in `SpanData.validation`.

        Returns:
            Batches of one target for each user; collective when called.
        """
        return self._parts[-1].validation(max_users)

    def held_out_items(self) -> np.ndarray:
        """The last span's items that are held out, as in `SpanData.held_out_items`."""
        return self._parts[-1].held_out_items()

    def trainable(self) -> Steps[Batch]:
        """The last span's users with their training interactions, as in `SpanData.trainable`."""
        return self._parts[-1].trainable()

    def everything(self) -> Steps[Batch]:
        """All users with their latest interactions, for write-back.

        Returns:
            Batches without targets, each user in one of them; collective when called.
        """
        each, later = list[Steps[Batch]](), np.empty(0, dtype=np.int64)
        for part in reversed(self._parts):
            each.append(part.everything(exclude=later))
            later = np.concatenate([later, part.users])
        return chain_steps([(steps, step) for steps in each for step in range(len(steps))], self.config.prefetch)


class SpanWithHistory(JoinedSpans):
    """Trains on one span's targets alone, with histories that continue into the spans before.

    Arguments and all other methods are those of `JoinedSpans`: ``users`` and `everything` cover all spans.
    """

    def training(self, epoch: int) -> Steps[Batch]:
        """The steps of one epoch over the last span, as in `SpanData.training`."""
        return self._parts[-1].training(epoch)
