"""Several spans as one: what a model is retrained on."""

from collections.abc import Callable

import numpy as np
import torch

from dist_imsr.data.batch import Batch, BatchConfig
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.schedule import generator
from dist_imsr.data.span import SpanData
from dist_imsr.data.steps import Steps, one_by_one

_ORDER = 11  # a stream of random numbers


class JoinedSpans:
    """The spans up to one, of the users that a rank owns; a user's history goes on over their borders.

    An epoch cuts each user's sequence in each span once, so that it costs what its interactions cost; as in a span
    alone, the first interaction of a sequence is history and no target. Only the last span holds targets out: those of
    earlier spans are the past. Memory follows the number of users and spans.

    Args:
        dataset: the prepared data.
        span: the last of the spans.
        buckets: the buckets that this rank owns.
        config: the batches' section.
        seed: keys shuffles, cuts and negatives.
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
            part = SpanData(dataset, one, buckets, config, seed, world_sum, tuple(self._parts), until=span)
            self._parts.append(part)
        self.users = np.unique(np.concatenate([part.users for part in self._parts]))

    def training(self, epoch: int) -> Steps[Batch]:
        """The steps of one epoch of training, those of all spans in random order.

        Args:
            epoch: keys the order, the shuffles, the cuts and the negatives.

        Returns:
            The batches; collective when called, not when read.
        """
        each = [part.training(epoch) for part in self._parts]
        places = [(steps, step) for steps in each for step in range(len(steps))]
        if self.span:
            order = generator(_ORDER, self.seed, self.span, epoch).permutation(len(places))
            places = [places[place] for place in order]
        return one_by_one(places, self.config.prefetch)

    def validation(self, most: int) -> Steps[Batch]:
        """As of the last span alone, but for the longer histories.

        Args:
            most: about so many users.

        Returns:
            Batches of one target for each user; collective when called.
        """
        return self._parts[-1].validation(most)

    def trainable(self) -> Steps[Batch]:
        """The last span's users with the interactions that may be learnt from.

        Returns:
            Batches without targets; collective when called.
        """
        return self._parts[-1].trainable()

    def everything(self) -> Steps[Batch]:
        """All users with the latest that they did, for writing interests back.

        Returns:
            Batches without targets, each user in one; collective when called.
        """
        each, later = list[Steps[Batch]](), np.empty(0, dtype=np.int64)
        for part in reversed(self._parts):
            each.append(part.everything(but=later))
            later = np.concatenate([later, part.users])
        return one_by_one([(steps, step) for steps in each for step in range(len(steps))], self.config.prefetch)
