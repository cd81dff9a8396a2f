"""The input of a training or test step: users with their histories and targets, jagged."""

from dataclasses import dataclass, field

import torch
from torchrec import JaggedTensor

from dist_imsr.checks import require
from dist_imsr.data.jagged import last_rows
from dist_imsr.data.steps import TensorBatch
from dist_imsr.keys import free


@dataclass
class BatchConfig:
    """Sizes of batches.

    Args:
        size: users in a global training batch, over all ranks.
        max_history: the latest interactions before the cut that enter the extractor; mimn and limarec write a span back
            in pieces of so many.
        max_targets: interactions after the cut that are predicted.
        negatives: sampled items that all targets of a step share.
        popular_negatives: the share of the negatives that are drawn as often as the span's interactions have them, from
            0, below 1; the others are uniform. The loss corrects for both (erratum E6).
        eval_size: users in a global batch of validation, testing and write-back.
        prefetch: batches prepared ahead in the background.
    """

    size: int = 128
    max_history: int = 100
    max_targets: int = 50
    negatives: int = 1000
    popular_negatives: float = 0.5
    eval_size: int = 1024
    prefetch: int = field(default=2, metadata=free())

    def __post_init__(self) -> None:
        for key in ("size", "max_history", "max_targets", "negatives", "eval_size", "prefetch"):
            require(getattr(self, key) >= 1, f"batch.{key}", getattr(self, key), "at least 1")
        share = self.popular_negatives
        require(0 <= share < 1, "batch.popular_negatives", share, "at least 0, below 1")


@dataclass
class Batch(TensorBatch):
    """This rank's part of a global step.

    Args:
        span: the span that the batch belongs to.
        users: ``[B]`` int64, ids.
        history: B sequences of item ids, the oldest first.
        targets: B sequences of item ids, all later than the history.
        negatives: one sequence of item ids, the same on every rank; empty outside of training.
        world_targets: the number of targets in the global step.
        replayed: the number of replayed rows: the last rows, with earlier sequences of users of the other rows.
        world_replayed: the number of targets of replayed rows in the global step.
        target_log_q: ``[A]`` float32, of the values of ``targets``: the logarithm of how likely a negative is to be
            this item, over that of a uniform draw; None for uniform draws.
        negative_log_q: ``[N]``, the same of the values of ``negatives``.
    """

    span: int
    users: torch.Tensor
    history: JaggedTensor
    targets: JaggedTensor
    negatives: JaggedTensor
    world_targets: int
    replayed: int = 0
    world_replayed: int = 0
    target_log_q: torch.Tensor | None = None
    negative_log_q: torch.Tensor | None = None

    def replay(self) -> "Batch":
        """The replayed rows alone, as views."""
        targets = last_rows(self.targets, self.replayed, self.host.targets)
        log_q = self.target_log_q
        replay = Batch(
            span=self.span,
            users=self.users[len(self.users) - self.replayed :],
            history=last_rows(self.history, self.replayed, self.host.history),
            targets=targets,
            negatives=self.negatives,
            world_targets=self.world_targets,
            replayed=self.replayed,
            world_replayed=self.world_replayed,
            target_log_q=None if log_q is None else log_q[len(log_q) - len(targets.values()) :],
            negative_log_q=self.negative_log_q,
        )
        replay._host = None if self._host is None else self._host.replay()
        return replay


@dataclass
class TestBatch(TensorBatch):
    """Users with their items in the test span.

    Args:
        users: ``[B]`` int64, ids.
        targets: B sequences of distinct item ids, in ascending order.
        last: ``[B]`` int64, the index of the user's latest interaction among the values of ``targets``.
        last_is_new: ``[B]`` bool, whether the user met that item in no earlier span.
    """

    users: torch.Tensor
    targets: JaggedTensor
    last: torch.Tensor
    last_is_new: torch.Tensor
