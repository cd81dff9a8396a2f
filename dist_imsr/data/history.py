"""The interactions of users in all spans so far."""

from typing import NamedTuple

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.dataset import Dataset, held_out


def active_users(dataset: Dataset, buckets: range, spans: range) -> np.ndarray:
    """The users of some buckets with interactions in any of some spans, ``[n]`` distinct ids, ascending."""
    users = [dataset.sequences(span, bucket).users for span in spans for bucket in buckets]
    return np.unique(np.concatenate([np.empty(0, np.int64), *users]))


class Met(NamedTuple):
    """What users have met, and how long ago.

    Args:
        items: B sequences of distinct item ids, ascending, on the device of the users' ids.
        place: ``[m]``, the index of each interaction among the values of ``items``.
        age: ``[m]``, the number of the user's interactions after it.
    """

    items: JaggedTensor
    place: np.ndarray
    age: np.ndarray

    def counts(self, decay: float) -> torch.Tensor:
        """How often its user has met each item; an interaction counts ``decay`` to the power of its age.

        Returns:
            ``[n]`` float64, for the values of ``items``, on their device.
        """
        values = self.items.values()
        return torch.from_numpy(np.bincount(self.place, decay**self.age, len(values))).to(values.device)


class History:
    """Looks up the interactions of users in the spans up to one; the data stay on disk.

    Args:
        dataset: the prepared data.
        buckets: the users' buckets.
        span: the last span that counts.
        first: the first span that counts.
        training: whether the interactions of the last span that are held out of training are left out.
    """

    def __init__(self, dataset: Dataset, buckets: range, span: int, first: int = 0, training: bool = False) -> None:
        self._n_buckets, self._first, self._training = dataset.buckets, buckets.start, training
        self._items = dataset.items_by_span[span]
        self._files = [[dataset.sequences(earlier, bucket) for earlier in range(first, span + 1)] for bucket in buckets]

    def __call__(self, users: torch.Tensor) -> JaggedTensor:
        """Looks up the items of users.

        Args:
            users: ``[B]`` int64, ids of users of the buckets.

        Returns:
            B sequences of distinct item ids, ascending, on the device of ``users``.
        """
        return self.met(users).items

    def met(self, users: torch.Tensor) -> Met:
        """Looks up the items of users, and when they met them; as in `__call__`."""
        ids = users.numpy(force=True)
        bucket = ids % self._n_buckets - self._first
        found, items = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for here in np.unique(bucket):
            rows = np.flatnonzero(bucket == here)
            for sequences in self._files[here]:
                owner, places = sequences.of(ids[rows])
                if self._training and sequences is self._files[here][-1]:
                    lengths = np.bincount(owner, minlength=len(rows))
                    position = np.arange(len(owner)) - (lengths.cumsum() - lengths)[owner]
                    kept = position < (lengths - held_out(lengths))[owner]
                    owner, places = owner[kept], places[kept]
                found.append(rows[owner])
                items.append(sequences.items[places])
        row = np.concatenate(found)
        order = row.argsort(kind="stable")  # spans follow each other, so a user's interactions stay in time order
        row, item = row[order], np.concatenate(items)[order]
        total = np.bincount(row, minlength=len(ids))
        age = total.cumsum()[row] - np.arange(len(row)) - 1
        distinct, place = np.unique(row * self._items + item, return_inverse=True)
        owner, item = np.divmod(distinct, self._items)
        sizes = torch.from_numpy(np.bincount(owner, minlength=len(ids))).to(users.device)
        return Met(JaggedTensor(torch.from_numpy(item).to(users.device), lengths=sizes), place, age)
