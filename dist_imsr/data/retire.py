"""Retires spans: incremental training reads the rows of a span once, and never those of earlier ones."""

from dataclasses import replace
from typing import Any

from dist_imsr.data.changes import Change


def retire(change: Change, before: int) -> tuple[dict[str, Any], int]:
    """Marks the rows of spans as retired, and so as leftovers, which `changing` removes; counts and ids stay.

    Args:
        change: of the data set.
        before: the first span whose rows stay; not after the last one.

    Returns:
        The new contents of ``dataset.json``; the number of interactions that are retired now.
    """
    known = change.known
    rows = sum(entry.interactions for entry in known.entries[known.first_kept : before])
    entries = [replace(entry, retired=entry.retired or span < before) for span, entry in enumerate(known.entries)]
    return change.commit(entries), rows
