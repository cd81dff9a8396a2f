"""The position of a run, and the best epoch of the span so far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dist_imsr.distributed.recommender import Snapshot
from dist_imsr.evaluation.repeats import Repeats, best_repeats
from dist_imsr.strategies.detection import Detection
from dist_imsr.strategies.growth import Growth


@dataclass
class Best:
    """The best epoch of a span so far.

    Args:
        epoch: its number.
        quality: its validation metric.
        losses: its mean losses per target: Eq. 6, and the extra loss.
        growth: the span's statistics of interests when the epoch ended.
        detections: the number of detections when the epoch ended.
        snapshot: a copy of the model when the epoch ended; None if the last state is kept.
    """

    epoch: int = 0
    quality: float = math.nan
    losses: tuple[float, float] = (math.nan, math.nan)
    growth: Growth = field(default_factory=Growth)
    detections: int = 0
    snapshot: Snapshot | None = None

    @property
    def validated(self) -> bool:
        """Whether validation targets chose it."""
        return not math.isnan(self.quality)

    def record(self) -> dict[str, float | None]:
        """The keys of metrics.jsonl; None without targets."""
        values = {"loss": self.losses[0], "retention_loss": self.losses[1], "validation": self.quality}
        return {name: None if math.isnan(value) else value for name, value in values.items()}


@dataclass
class Progress:
    """The position of a run between two steps.

    Args:
        span: the current span.
        epoch: the current epoch.
        step: the next step of the epoch.
        steps: number of steps since the run began.
        seconds: of training in the span.
        losses: of the epoch, summed over its targets so far: Eq. 6, and the extra loss.
        targets: of the epoch so far.
        growth: the span's statistics of interests.
        detections: results of the detector in the span, one for each run of it, on the host.
        best: the best epoch so far.
        repeats: what scores add for repeats.
        repeat_gains: of each candidate for it, summed over all tests so far; none before the first one.
        untested: the report of the last trained span, until that is tested on the current one.
        lines: of metrics.jsonl.
    """

    span: int = 0
    epoch: int = 0
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    losses: tuple[float, float] = (0.0, 0.0)
    targets: int = 0
    growth: Growth = field(default_factory=Growth)
    detections: list[Detection] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    repeats: Repeats = field(default_factory=Repeats)
    repeat_gains: list[float] = field(default_factory=list)
    untested: dict[str, Any] | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def begun(self) -> bool:
        """Whether at least one step of the span is trained."""
        return (self.epoch, self.step) != (0, 0)

    @property
    def spans_read(self) -> int:
        """The number of spans that the state depends on: those that were trained, and the one at hand if it was read.

        Pre-training is the only span that no test follows.
        """
        tested = self.span > 1 and self.untested is None
        return self.span + (self.begun or tested)

    @property
    def untrainable(self) -> bool:
        """Whether the epochs of the span so far had no targets to train on."""
        return self.epoch > 0 and math.isnan(self.best.losses[0])

    def add_step(self, loss: float, extra: float, targets: int) -> None:
        """Counts a step of training, with its losses summed over its targets."""
        self.losses = self.losses[0] + loss, self.losses[1] + extra
        self.targets += targets
        self.step, self.steps = self.step + 1, self.steps + 1

    def add_gains(self, candidates: Sequence[Repeats], gains: Sequence[float]) -> None:
        """Adds what each candidate for `repeats` got in a test, and takes the best one in all tests so far."""
        if candidates:
            before = self.repeat_gains or [0.0] * len(candidates)
            self.repeat_gains = [gain + more for gain, more in zip(before, gains, strict=True)]
            self.repeats = best_repeats(candidates, self.repeat_gains)

    def mean_losses(self) -> tuple[float, float]:
        """The epoch's mean losses per target; NaN without targets."""
        loss, extra = self.losses
        return (loss / self.targets, extra / self.targets) if self.targets else (math.nan, math.nan)

    def at(self, span: int, untested: dict[str, Any] | None = None) -> "Progress":
        """The progress at the beginning of a span."""
        return Progress(
            span,
            steps=self.steps,
            repeats=self.repeats,
            repeat_gains=self.repeat_gains,
            untested=untested,
            lines=self.lines,
        )
