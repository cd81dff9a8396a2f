"""What a step sees: users with their histories and targets, jagged."""

from dataclasses import dataclass, field, fields

import torch
from torchrec import JaggedTensor

from dist_imsr.checks import require
from dist_imsr.data.jagged import last
from dist_imsr.data.steps import Movable
from dist_imsr.keys import free


@dataclass
class BatchConfig:
    """What a global step sees.

    Args:
        size: users in a global batch, over all ranks.
        max_history: the latest interactions before the cut that enter the extractor; mimn and limarec write a span back
            in pieces of so many.
        max_targets: the interactions after the cut that are predicted.
        negatives: uniformly sampled items that all targets of a step share.
        eval_size: users in a global block of validation, testing and writing back.
        prefetch: batches prepared ahead in the background.
    """

    size: int = 128
    max_history: int = 100
    max_targets: int = 50
    negatives: int = 1000
    eval_size: int = 1024
    prefetch: int = field(default=2, metadata=free())

    def __post_init__(self) -> None:
        for key in fields(self):
            value = getattr(self, key.name)
            require(value >= 1, f"batch.{key.name}", value, "at least 1")


@dataclass
class Batch(Movable):
    """This rank's part of a global step.

    Args:
        span: which span it is of.
        users: ``[B]`` int64, dense ids.
        history: B sequences of item ids, the oldest first.
        targets: B sequences of item ids, all later than the history.
        negatives: one sequence of item ids, the same on every rank; of length 0 outside training.
        world_targets: the number of targets in the global step.
        replayed: how many of the users, the last ones, are earlier sequences of the others, and so here again.
        world_replayed: how many of the targets in the global step are theirs.
    """

    span: int
    users: torch.Tensor
    history: JaggedTensor
    targets: JaggedTensor
    negatives: JaggedTensor
    world_targets: int
    replayed: int = 0
    world_replayed: int = 0

    def replay(self) -> "Batch":
        """The replayed users alone.

        Returns:
            A batch that shares memory with this one.
        """
        histories, targets = (last(one, self.replayed) for one in (self.history, self.targets))
        users = self.users[len(self.users) - self.replayed :]
        counts = self.world_targets, self.replayed, self.world_replayed
        return Batch(self.span, users, histories, targets, self.negatives, *counts)


@dataclass
class TestBatch(Movable):
    """Users and what they turned to in the span that a model is tested on.

    Args:
        users: ``[B]`` int64, dense ids.
        targets: B sequences of distinct item ids, in ascending order.
        last: ``[B]`` int64, the place of the user's latest interaction among the values of ``targets``.
        last_is_new: ``[B]`` bool, whether the user met that item in no earlier span.
    """

    users: torch.Tensor
    targets: JaggedTensor
    last: torch.Tensor
    last_is_new: torch.Tensor
