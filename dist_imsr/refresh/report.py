"""What a refresh did, as one line for a scheduler."""

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.command import BAD_INPUT, FAILED, INTERRUPTED, REQUEUE
from dist_imsr.refresh.quality import Quality

HELD = 3  # exit status: the model is trained, but not good enough to be published
_OUTCOMES = {HELD: "held", BAD_INPUT: "refused", FAILED: "failed", REQUEUE: "stopped", INTERRUPTED: "stopped"}


@dataclass
class Report:
    """What a refresh did.

    Args:
        append: of `appended`; None if there was no input.
        quality: of the newest tested span; None if no span was tested.
        published: the contents of publication.json of the current publication, and its folder; None without any.
        newly: whether this refresh published it.
        seconds: that each step took, by its name; those that had been done before are missing.
        reason: why the refresh ended early, or published nothing.
    """

    append: dict[str, Any] | None = None
    quality: Quality | None = None
    published: dict[str, Any] | None = None
    newly: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    reason: str | None = None

    def line(self, status: int) -> str:
        """The line of JSON.

        Args:
            status: the exit status.
        """
        quality = None if self.quality is None else asdict(self.quality) | {"ratio": self.quality.ratio}
        done = "published" if self.newly else "trained" if "train" in self.seconds else "unchanged"
        values = {
            "outcome": _OUTCOMES.get(status, done),
            "status": status,
            "reason": self.reason,
            "append": self.append,
            "quality": quality,
            "published": self.published,
            "seconds": self.seconds,
        }
        return json.dumps(values)


def appended(dataset: Dataset, digests: Collection[str]) -> dict[str, Any]:
    """The counts of the newest append, or first preparation, of some files.

    Args:
        dataset: the data that have them.
        digests: of the files, at least one.

    Returns:
        Plain values.
    """
    records = reversed(dataset.manifest["preparations"])
    record = next(record for record in records if not set(digests).isdisjoint(record["digests"]))
    first, last = record["spans"]
    spans, after = dataset.entries[first : last + 1], dataset.entries[last]
    users, items = (sum(dataset.entries[first - 1].users), dataset.entries[first - 1].items) if first else (0, 0)
    interactions = sum(span.interactions for span in spans)
    return {
        "input": record["input"],
        "spans": [first, last],
        "rows_read": record["rows_read"],
        "rejected": record["rejected"],
        "left_out": record["left_out"],
        "interactions": interactions,
        "new_users": sum(after.users) - users,
        "new_items": after.items - items,
        "of_returning_users": sum(span.interactions_of_returning_users for span in spans) / max(interactions, 1),
        "with_new_items": sum(span.interactions_with_new_items for span in spans) / max(interactions, 1),
    }
