"""The interactions of users in all spans so far."""

from typing import NamedTuple

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.dataset import Dataset
from dist_imsr.data.held_out import trained_places


def active_users(dataset: Dataset, buckets: range, spans: range) -> np.ndarray:
    """The users of some buckets with interactions in any of some spans, ``[n]`` distinct ids, ascending."""
    users = [dataset.sequences(span, bucket).users for span in spans for bucket in buckets]
    return np.unique(np.concatenate([np.empty(0, np.int64), *users]))


class PastItems(NamedTuple):
    """The distinct items that each of B users has met, user after user, ascending.

    Args:
        users: B.
        owner: ``[m]``, the index of an item's user.
        item: ``[m]``, ids.
        place: ``[n]``, the index of each interaction's user and item among the m.
        age: ``[n]``, the number of the user's later interactions.
    """

    users: int
    owner: np.ndarray
    item: np.ndarray
    place: np.ndarray
    age: np.ndarray

    def jagged(self, device: torch.device | str) -> JaggedTensor:
        """B sequences of the items' ids, on a device."""
        lengths = torch.from_numpy(np.bincount(self.owner, minlength=self.users))
        return JaggedTensor(torch.from_numpy(self.item).to(device), lengths=lengths.to(device))

    def weights(self, decay: float) -> np.ndarray:
        """The decayed counts, ``[m]`` float64: each interaction counts ``decay`` to the power of its age."""
        return np.bincount(self.place, decay**self.age, minlength=len(self.item))

    def recency(self, decay: float) -> np.ndarray:
        """``decay`` to the power of the age of each item's latest interaction, ``[m]`` float64."""
        latest = np.full(len(self.item), self.age.max(initial=0))
        np.minimum.at(latest, self.place, self.age)
        recency: np.ndarray = decay**latest
        return recency


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
        by_span = [dataset.sequences_of(earlier, buckets) for earlier in range(first, span + 1)]
        self._files = [[part[place] for part in by_span] for place in range(len(buckets))]

    def __call__(self, users: torch.Tensor) -> PastItems:
        """Looks up the items of users, and when they met them.

        Args:
            users: ``[B]`` int64, ids of users of the buckets.
        """
        ids = users.numpy(force=True)
        bucket = ids % self._n_buckets - self._first
        found, items = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for here in np.unique(bucket):
            rows = np.flatnonzero(bucket == here)
            for sequences in self._files[here]:
                owner, places = sequences.of(ids[rows])
                if self._training and sequences is self._files[here][-1]:
                    kept = trained_places(np.bincount(owner, minlength=len(rows)))
                    owner, places = owner[kept], places[kept]
                found.append(rows[owner])
                items.append(sequences.items[places])
        row = np.concatenate(found)
        order = row.argsort(kind="stable")  # spans follow each other, so a user's interactions stay in time order
        row, item = row[order], np.concatenate(items)[order]
        total = np.bincount(row, minlength=len(ids))
        age = total.cumsum()[row] - np.arange(len(row)) - 1
        distinct, place = np.unique(row * self._items + item, return_inverse=True)
        return PastItems(len(ids), distinct // self._items, distinct % self._items, place, age)
