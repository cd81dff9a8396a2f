"""Exported interests, items and detections as NumPy arrays."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from dist_imsr.data.dataset import Dataset
from dist_imsr.report.sources import Missing, Run

EXPORT_EVERY = "train with --training.export every"


@dataclass(frozen=True)
class ExportedInterests:
    """The interests of all users after a span, user after user.

    Args:
        users: ``[n]`` ids, ascending.
        born: ``[n]``, the span that created the interest.
        vectors: ``[n, d]`` float32.
    """

    users: np.ndarray
    born: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, run: Run, span: int) -> "ExportedInterests":
        """Reads those of a run.

        Raises:
            Missing: if the span is not exported.
        """
        table = run.parts(span, "interests")
        users = table["user"].to_numpy()
        order = users.argsort(kind="stable")  # an interest is in one file with all others of its user
        return cls(users[order], table["born"].to_numpy()[order], vectors_of(table)[order])

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The distinct users, the place of each one's first interest, and the number of its interests."""
        return np.unique(self.users, return_index=True, return_counts=True)

    def of_user(self, user: int) -> "ExportedInterests":
        """Those of one user."""
        own = slice(*np.searchsorted(self.users, [user, user + 1]))
        return ExportedInterests(self.users[own], self.born[own].copy(), self.vectors[own].copy())


def vectors_of(table: pa.Table) -> np.ndarray:
    """The column ``vector``, ``[n, d]`` float32."""
    column = table["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)


def item_vectors(run: Run, span: int) -> np.ndarray:
    """The embeddings of all items that are known by the end of a span, ``[items, d]``, by id.

    Raises:
        Missing: if they cannot be read.
    """
    table = run.parts(span, "items")
    order = table["item"].to_numpy().argsort()
    return vectors_of(table)[order, : run.settings["model"]["dim"]]  # without the bias


def items_of(dataset: Dataset, span: int, user: int) -> np.ndarray:
    """A user's items in a span, ``[n]`` int64, in time order; empty for a user who is not active in it."""
    if dataset.entries[span].retired:
        return np.empty(0, np.int64)
    sequences = dataset.sequences(span, user % dataset.buckets)
    _, places = sequences.of(np.array([user]))
    return sequences.items[places].astype(np.int64)


def exported_spans(run: Run, least: int = 1) -> list[int]:
    """The exported spans.

    Raises:
        Missing: if there are fewer than ``least``.
    """
    if len(run.exported) < least:
        raise Missing(f"{run.folder} has {len(run.exported)} exported span(s): {EXPORT_EVERY}")
    return run.exported
