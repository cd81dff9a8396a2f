"""The section of training: epochs, early stopping, the number of spans."""

from dataclasses import dataclass, field
from typing import Literal

from dist_imsr.checks import require
from dist_imsr.keys import free, later_spans, never


@dataclass
class TrainingConfig:
    """How long to train, and when to stop.

    Args:
        epochs: maximum number in the pre-training span, and in each span of full_retraining.
        incremental_epochs: maximum number in every later span.
        patience: epochs without a better validation before the best state is restored; 0 trains all epochs and keeps
            the last, as in a span without validation targets (users with 3 or more interactions in it).
        metric: the validation metric, on each user's second last interaction of the span.
        validation_users: approximate number of users to validate on, in spans that have more.
        until: the last span to train. ``tested``: the last but one of the data, so that every model is tested, as in
            the paper. ``newest``: the last one, for serving; its test follows once the data have a next span. After an
            append, the same command resumes behind the last trained span.
        spans: number of spans to train after the pre-training span; all by default, 0 for pre-training alone. The same
            command with a larger number continues a run.
        export: the spans whose interests, items and detections are written under run_dir/spans/, where
            launch/recommend.py and launch/export.py read them: ``every`` trained span, or the ``last`` that a command
            trains, which replaces all earlier ones.
        deterministic: sum in a fixed order, so that a command that runs again, or resumes, ends with the same bits;
            docs/cuda.md says what that costs. Without it, results differ by what rounding does to them.
    """

    epochs: int = 50
    incremental_epochs: int = field(default=15, metadata=later_spans(compare="shared"))
    patience: int = field(default=5, metadata=never(compare="shared"))
    metric: Literal["ndcg", "mrr"] = field(default="ndcg", metadata=never(compare="tests"))
    validation_users: int = field(default=2000, metadata=never(compare="tests"))
    until: Literal["tested", "newest"] = field(default="tested", metadata=free(compare="tests"))
    spans: int | None = field(default=None, metadata=free(compare="tests"))
    export: Literal["none", "last", "every"] = field(default="last", metadata=free(compare="grid"))
    deterministic: bool = field(default=True, metadata=free(compare="shared"))

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "training.epochs", self.epochs, "at least 1")
        require(self.incremental_epochs >= 1, "training.incremental_epochs", self.incremental_epochs, "at least 1")
        require(self.patience >= 0, "training.patience", self.patience, "at least 0")
        require(self.validation_users >= 1, "training.validation_users", self.validation_users, "at least 1")
        require(self.spans is None or self.spans >= 0, "training.spans", self.spans, "at least 0")

    def last(self, spans: int) -> int:
        """The number of the last span that is trained.

        Args:
            spans: number of spans of the data, the pre-training span included.

        Raises:
            ValueError: if the data have a single span, which `until` leaves for testing, or the key `spans` exceeds
                what they have.
        """
        limit = spans - 1 if self.until == "newest" else spans - 2
        if limit < 0:
            raise ValueError(
                "training.until: the data have one span, and tested leaves the last one for testing: append a span, or "
                "pass --training.until newest"
            )
        last = limit if self.spans is None else self.spans
        require(last <= limit, "training.spans", self.spans, f"at most {limit} with these data")
        return last
