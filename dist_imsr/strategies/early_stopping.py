"""Early stopping: how many epochs a span takes, and which epoch's state it ends with."""

import math
from collections.abc import Callable
from dataclasses import replace

from dist_imsr.distributed.recommender import Recommender
from dist_imsr.phases import Phase
from dist_imsr.strategies.progress import Best, Progress
from dist_imsr.strategies.training_config import TrainingConfig

_ROUNDING = 1e-12


class EarlyStopping:
    """Ends a span's training after ``patience`` epochs without a better validation, and keeps the best epoch's state.

    It has no state of its own: the best epoch so far is part of `Progress`, which checkpoints hold.

    Args:
        config: the section of training.
        wait_for_save: returns once no checkpoint reads the best epoch's copy any more.
    """

    def __init__(self, config: TrainingConfig, wait_for_save: Callable[[], None]) -> None:
        self.config, self._wait_for_save = config, wait_for_save

    def stops(self, progress: Progress, pretraining: bool) -> bool:
        """Whether the span takes no further epoch. A span without targets to train on takes one, which changes nothing.

        Args:
            progress: between two epochs.
            pretraining: whether ``epochs`` bounds them, or ``incremental_epochs``.
        """
        limit = self.config.epochs if pretraining else self.config.incremental_epochs
        return (
            progress.epoch >= limit
            or progress.untrainable
            or 0 < self.config.patience < progress.epoch - progress.best.epoch
        )

    def update(self, progress: Progress, model: Recommender, losses: tuple[float, float], quality: float) -> bool:
        """Replaces the best epoch by the current one if that is better; collective.

        Args:
            progress: at the end of an epoch.
            model: its state at this moment.
            losses: the epoch's mean losses per target: Eq. 6, and the extra loss.
            quality: the validation metric; NaN without validation targets, which counts as better.

        Returns:
            Whether the current epoch is the best.
        """
        # The order of summation may change the last bits of equal gains: that is no improvement.
        if quality <= progress.best.quality + _ROUNDING and self.config.patience:
            return False
        self._free_copy(progress)
        progress.best = Best(
            epoch=progress.epoch,
            quality=quality,
            losses=losses,
            growth=progress.growth,
            detections=len(progress.detections),
            snapshot=model.snapshot() if self.config.patience else None,
        )
        return True

    def restore(self, progress: Progress, model: Recommender) -> Progress:
        """Restores the best epoch's parameters, with its interests and their statistics.

        Args:
            progress: after the last epoch.
            model: it receives the best epoch's state.

        Returns:
            The progress without the growth and the detections of later epochs.
        """
        best = progress.best
        if best.snapshot:
            model.restore(best.snapshot)
        return replace(progress, growth=best.growth, detections=progress.detections[: best.detections])

    @Phase("checkpoint")
    def _free_copy(self, progress: Progress) -> None:
        """Frees the previous best epoch's copy before the next is made: each is as large as the model."""
        self._wait_for_save()  # it may still write from the copy
        progress.best = replace(progress.best, snapshot=None)


def describe_epoch(losses: tuple[float, float], metric: str, quality: float, better: bool) -> str:
    """An epoch's results for the log.

    Args:
        losses: as in `EarlyStopping.update`.
        metric: the name of the validation metric.
        quality: the validation metric.
        better: whether the epoch is the best so far.
    """
    loss = "no targets to train on" if math.isnan(losses[0]) else f"loss {losses[0]:.4f}"
    if math.isnan(quality):
        return f"{loss}, no validation targets"
    return f"{loss}, validation {metric} {quality:.4f}{' (best)' if better else ''}"


def describe_lack(progress: Progress) -> str | None:
    """What a span lacks to be trained or validated, and what follows; None for nothing.

    Args:
        progress: after the span's last epoch.
    """
    if progress.untrainable:
        return (
            f"span {progress.span} has nothing to train on: none of its users has 2 interactions, or 4 of which 2 are "
            "held out; no step is taken, and only interests are written"
        )
    if not progress.best.validated:
        return f"span {progress.span} has no validation targets: all its epochs were trained and the last is kept"
    return None
