"""Whether the newest tested span is as good as those before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dist_imsr.refresh.config import QualityConfig


@dataclass(frozen=True)
class Quality:
    """The metric of the newest tested span, against the mean of those before it.

    Args:
        metric: its name.
        span: the tested span.
        value: the metric; None if the span has no tested users.
        mean: over the spans before it; None without any.
        spans: how many these are.
        min_ratio: the least share of the mean that is good enough.
    """

    metric: str
    span: int
    value: float | None
    mean: float | None
    spans: int
    min_ratio: float

    @property
    def ratio(self) -> float | None:
        """The share of the mean; None without a value, or a mean above 0."""
        return self.value / self.mean if self.value is not None and self.mean else None

    @property
    def objection(self) -> str | None:
        """Why the model must not be published; None if it is good enough."""
        if self.min_ratio == 0:
            return None
        if self.value is None:
            return f"{self.metric} of span {self.span} is unknown: it has no tested users"
        if self.ratio is not None and self.ratio < self.min_ratio:
            return f"{self}, less than refresh.min_ratio {self.min_ratio:g}"
        return None

    def __str__(self) -> str:
        shown = "unknown" if self.value is None else f"{self.value:.4g}"
        if self.mean is None:
            return f"{self.metric} of span {self.span} is {shown}, the first that is tested"
        share = "" if self.ratio is None else f", {self.ratio:.2f} of it"
        before = f"the mean of the {self.spans} span(s) before is {self.mean:.4g}"
        return f"{self.metric} of span {self.span} is {shown}; {before}{share}"


def quality_of(lines: Sequence[dict[str, Any]], config: QualityConfig) -> Quality | None:
    """Compares the newest tested span with those before it.

    Args:
        lines: of metrics.jsonl.
        config: the metric and the spans that count.

    Returns:
        The comparison; None if no span was tested.
    """
    if not lines:
        return None
    *earlier, newest = lines
    values = [value for line in earlier[-config.last_spans :] if (value := line[config.metric]) is not None]
    return Quality(
        metric=config.metric,
        span=newest["test_span"],
        value=newest[config.metric],
        mean=sum(values) / len(values) if values else None,
        spans=len(values),
        min_ratio=config.min_ratio,
    )
