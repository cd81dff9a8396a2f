"""Where a run is, and the best epoch of the span so far."""

import math
from dataclasses import dataclass, field
from typing import Any

from dist_imsr.distributed.recommender import Snapshot
from dist_imsr.strategies.detection import Detection
from dist_imsr.strategies.growth import Growth


@dataclass
class Best:
    """The best epoch of a span so far.

    Args:
        epoch: its number.
        quality: its validation metric.
        losses: its mean losses per target: Eq. 6, and the extra loss.
        growth: the span's account of interests when it ended.
        detections: how often the detector had run.
        snapshot: the model when it ended; None keeps the last state.
    """

    epoch: int = 0
    quality: float = math.nan
    losses: tuple[float, float] = (math.nan, math.nan)
    growth: Growth = field(default_factory=Growth)
    detections: int = 0
    snapshot: Snapshot | None = None

    def record(self) -> dict[str, float | None]:
        """The keys of metrics.jsonl; None without targets."""
        values = {"loss": self.losses[0], "retention_loss": self.losses[1], "validation": self.quality}
        return {name: None if math.isnan(value) else value for name, value in values.items()}


@dataclass
class Progress:
    """Where a run is between two steps.

    Args:
        span: the current span.
        epoch: the current epoch; those before are trained and validated.
        step: the next step of the epoch.
        steps: trained since the run began.
        seconds: of training in the span.
        losses: of the epoch, summed over its targets so far: Eq. 6, and the extra loss.
        targets: of the epoch so far.
        growth: the span's account of interests.
        detections: the detector's findings in the span, one for each time that it ran.
        best: the best epoch so far.
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
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def begun(self) -> bool:
        """Whether a part of the span is trained."""
        return (self.epoch, self.step) != (0, 0)

    def at(self, span: int) -> "Progress":
        """The beginning of a span.

        Args:
            span: the span.

        Returns:
            A new one.
        """
        return Progress(span, steps=self.steps, lines=self.lines)
