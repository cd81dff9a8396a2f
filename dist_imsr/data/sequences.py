"""The interactions of users in one span, in a file that is mapped into memory."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from dist_imsr.data.schedule import ranges
from dist_imsr.data.sorted_keys import find_sorted


@dataclass(frozen=True)
class Sequences:
    """Views of the interactions of one bucket's users in one span, in a memory-mapped file.

    Args:
        users: ``[n]`` user ids, ascending.
        offsets: ``[n + 1]``; user i's interactions are ``offsets[i] .. offsets[i + 1] - 1``, in time order.
        items: ``[offsets[-1]]`` item ids.
        batch: the Arrow batch of all columns.
    """

    users: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    batch: pa.RecordBatch

    @cached_property
    def times(self) -> np.ndarray:
        """Unix seconds of each interaction."""
        return self.batch.column("times").values.to_numpy()

    @cached_property
    def met_before(self) -> np.ndarray:
        """Whether the user met the item in an earlier span, for each interaction."""
        return self.batch.column("met_before").values.to_numpy(zero_copy_only=False)

    def of(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the interactions of some users, who need not be here.

        Args:
            users: ``[n]`` ids.

        Returns:
            For each interaction, user after user: its user's index in ``users``, and its own index in `items`.
        """
        place = find_sorted(self.users, users)
        found = np.flatnonzero(place >= 0)
        starts = self.offsets[place[found]].astype(np.int64)
        lengths = self.offsets[place[found] + 1] - starts
        return found.repeat(lengths), ranges(starts, lengths)
