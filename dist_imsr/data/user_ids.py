"""User ids: ``u = local * n_buckets + bucket``, where local counts up inside the bucket, so that no id ever changes."""

from typing import NamedTuple, TypeVar

import numpy as np
import torch

Ids = TypeVar("Ids", np.ndarray, torch.Tensor)
"""Integers of any shape."""
_LOCAL_BITS = 40  # of a sort key; as many users fit into a bucket


def sort_keys(users: Ids, n_buckets: int) -> Ids:
    """Keys that sort users by bucket, and inside a bucket by id, which is the order of the rows of bucket files."""
    return (users % n_buckets << _LOCAL_BITS) | users // n_buckets


class OwnedUsers(NamedTuple):
    """The users of consecutive buckets, numbered by rows without gaps between the buckets.

    Row ``local * len(buckets) + (bucket - buckets.start)`` is that of a user; rows and ids have the same order, and a
    new user's row never moves those of others.

    Args:
        n_buckets: the number of buckets of the data set.
        buckets: those that are owned.
    """

    n_buckets: int
    buckets: range

    def rows(self, users: Ids) -> Ids:
        """The rows of users of these buckets."""
        return users // self.n_buckets * len(self.buckets) + (users % self.n_buckets - self.buckets.start)

    def users(self, rows: Ids) -> Ids:
        """The ids of rows."""
        width = len(self.buckets)
        return rows // width * self.n_buckets + (rows % width + self.buckets.start)

    def owns(self, users: Ids) -> Ids:
        """Which users are in these buckets, bool."""
        bucket = users % self.n_buckets
        return (bucket >= self.buckets.start) & (bucket < self.buckets.stop)
