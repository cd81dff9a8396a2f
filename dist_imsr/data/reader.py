"""Reads parts of users' sequences in one span from its Arrow files."""

from collections.abc import Sequence

import numpy as np
from torchrec import JaggedTensor

from dist_imsr.data.dataset import Dataset
from dist_imsr.data.jagged import concat_rows, jagged
from dist_imsr.data.schedule import ranges
from dist_imsr.data.sorted_keys import find_sorted
from dist_imsr.data.user_ids import sort_keys


class SpanReader:
    """The sequences of the users of some buckets in one span, read through memory maps.

    Memory grows with the number of users; their interactions stay on disk until they are read. Methods take users as
    indices ``[B]`` into `users`, sorted by bucket.

    Args:
        dataset: the prepared data.
        span: the span.
        buckets: the buckets of this rank.
    """

    def __init__(self, dataset: Dataset, span: int, buckets: range) -> None:
        self.sequences = dataset.sequences_of(span, buckets)
        sizes = [len(sequences.users) for sequences in self.sequences]
        self.bucket = np.arange(len(buckets)).repeat(sizes)
        """``[n]``, the index of each user's bucket among ``buckets``."""
        self.users = np.concatenate([sequences.users for sequences in self.sequences]).astype(np.int64)
        """``[n]``, ids; ascending inside each bucket."""
        self._n_buckets = dataset.buckets
        self._keys = sort_keys(self.users, self._n_buckets)
        self.starts = np.concatenate([sequences.offsets[:-1] for sequences in self.sequences]).astype(np.int64)
        self.lengths = np.concatenate([np.diff(sequences.offsets) for sequences in self.sequences]).astype(np.int64)

    def find(self, users: np.ndarray) -> np.ndarray:
        """Looks up users, ``[B]`` ids, who need not be in this span.

        Returns:
            ``[B]`` int64, their indices into `users`; -1 for those who are not there.
        """
        return find_sorted(self._keys, sort_keys(users, self._n_buckets))

    def read(self, column: str, at: np.ndarray, first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Reads a part of each user's sequence.

        Args:
            column: ``items`` or ``met_before``.
            at: ``[B]``, users.
            first: ``[B]``, where each part begins in its sequence.
            lengths: ``[B]``, the length of each part.

        Returns:
            ``[sum of lengths]``.
        """
        flat = ranges(self.starts[at] + first, lengths)
        ends = np.bincount(self.bucket[at], lengths, minlength=len(self.sequences)).cumsum().astype(np.int64)
        begins = np.concatenate([[0], ends[:-1]])
        return np.concatenate(
            [
                getattr(self.sequences[bucket], column)[flat[begins[bucket] : ends[bucket]]]
                for bucket in np.flatnonzero(begins < ends)
            ]
            or [np.empty(0, bool)]
        )

    def items(self, at: np.ndarray, first: np.ndarray, lengths: np.ndarray) -> JaggedTensor:
        """Reads a part of each user's items; arguments as of `read`."""
        return jagged(self.read("items", at, first, lengths), lengths)

    def history(
        self, at: np.ndarray, cut: np.ndarray, longest: int, begin: int = 0, earlier: "Sequence[SpanReader]" = ()
    ) -> JaggedTensor:
        """Reads the latest items before a cut of each user's sequence.

        Args:
            at: ``[B]``, users.
            cut: ``[B]``, the end of each history in its sequence.
            longest: the maximal length of a history.
            begin: the first interaction that counts.
            earlier: earlier spans, in order, from which shorter histories are filled up.
        """
        first = np.maximum(cut - longest, begin)
        pieces = [(self.read("items", at, first, cut - first), cut - first)]
        left = longest - (cut - first)
        for span in reversed(earlier):
            pieces.insert(0, span.latest(self.users[at], left))
            left = left - pieces[0][1]
        return concat_rows(pieces)

    def latest(self, users: np.ndarray, longest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads the latest items of users, who need not be in this span.

        Args:
            users: ``[B]``, ids, sorted by bucket.
            longest: ``[B]``, the maximal number of items of each.

        Returns:
            The items, concatenated, and the number of items of each user ``[B]``.
        """
        at = self.find(users)
        here = at >= 0
        at, lengths = at[here], np.zeros_like(longest)
        lengths[here] = taken = np.minimum(self.lengths[at], longest[here])
        return self.read("items", at, self.lengths[at] - taken, taken), lengths
