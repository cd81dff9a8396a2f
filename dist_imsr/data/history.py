"""The interactions of users in all spans so far."""

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.dataset import Dataset


def active_users(dataset: Dataset, buckets: range, spans: range) -> np.ndarray:
    """The users of some buckets with interactions in any of some spans, ``[n]`` distinct ids, ascending."""
    users = [dataset.sequences(span, bucket).users for span in spans for bucket in buckets]
    return np.unique(np.concatenate([np.empty(0, np.int64), *users]))


class History:
    """Looks up the items of users in the spans up to one; the data stay on disk.

    Args:
        dataset: the prepared data.
        buckets: the users' buckets.
        span: the last span that counts.
        first: the first span that counts.
    """

    def __init__(self, dataset: Dataset, buckets: range, span: int, first: int = 0) -> None:
        self._n_buckets, self._first = dataset.buckets, buckets.start
        self._items = dataset.items_by_span[span]
        self._files = [[dataset.sequences(earlier, bucket) for earlier in range(first, span + 1)] for bucket in buckets]

    def __call__(self, users: torch.Tensor) -> JaggedTensor:
        """Looks up users.

        Args:
            users: ``[B]`` int64, ids of users of the buckets.

        Returns:
            B sequences of distinct item ids, ascending, on the device of ``users``.
        """
        ids = users.numpy(force=True)
        bucket = ids % self._n_buckets - self._first
        pairs = [np.empty(0, np.int64)]
        for here in np.unique(bucket):
            rows = np.flatnonzero(bucket == here)
            for sequences in self._files[here]:
                owner, places = sequences.of(ids[rows])
                pairs.append(rows[owner] * self._items + sequences.items[places])
        row, items = np.divmod(np.unique(np.concatenate(pairs)), self._items)
        lengths = torch.from_numpy(np.bincount(row, minlength=len(ids)))
        return JaggedTensor(torch.from_numpy(items).to(users.device), lengths=lengths.to(users.device))
