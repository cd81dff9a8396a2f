"""Early stopping: how many epochs a span takes, and which epoch's state it ends with."""

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
        """Whether the span takes no further epoch.

        Args:
            progress: between two epochs.
            pretraining: whether ``epochs`` bounds them, or ``incremental_epochs``.
        """
        limit = self.config.epochs if pretraining else self.config.incremental_epochs
        return progress.epoch >= limit or 0 < self.config.patience < progress.epoch - progress.best.epoch

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
