"""Whether the users of interactions met their items in an earlier span."""

import itertools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dist_imsr.data.dataset import Dataset
from dist_imsr.data.schedule import ranges

_BLOCK = 1 << 16  # rows


def met_before(users: np.ndarray, items: np.ndarray, spans: np.ndarray, n_items: int) -> np.ndarray:
    """Whether the user of each interaction met its item in an earlier span of the same log.

    Args:
        users: ``[n]`` integers, in ascending order.
        items: ``[n]`` item ids, below ``n_items``.
        spans: ``[n]`` the span of each interaction.
        n_items: the number of items.

    Returns:
        ``[n]`` bool.
    """
    met = np.zeros(len(users), bool)
    n_spans = int(spans.max(initial=0)) + 1
    if n_spans == 1:
        return met
    # A block of users at a time fits into the processor's cache, and takes little memory compared to all rows.
    edges = np.searchsorted(users, users[np.arange(0, len(users), _BLOCK)], side="left")
    for block in (slice(*ends) for ends in itertools.pairwise([*np.unique(edges), len(users)])):
        pairs = (users[block].astype(np.int64) - int(users[block.start])) * n_items + items[block]  # of user and item
        order = np.argsort(pairs * n_spans + spans[block])
        pairs, sorted_spans = pairs[order], spans[block][order]
        new = np.diff(pairs, prepend=-1) != 0
        first = sorted_spans[new][new.cumsum() - 1]
        met[block][order] = sorted_spans > first
    return met


def met_in(history: Dataset, bucket: int, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Whether the user of each interaction met its item in the spans of a data set whose rows are kept.

    The cost follows the rows, and what their users did before.

    Args:
        history: the data set.
        bucket: of the users.
        users: ``[n]`` user ids, in ascending order.
        items: ``[n]`` item ids.

    Returns:
        ``[n]`` bool.
    """
    n_items = int(items.max(initial=0)) + 1
    distinct, row = np.unique(users, return_inverse=True)
    pairs = row * n_items + items
    wanted, met = pa.array(np.unique(pairs)), [np.empty(0, np.int64)]
    for span in range(history.first_kept, history.spans):
        earlier = history.sequences(span, bucket)
        _, at, who = np.intersect1d(earlier.users, distinct, assume_unique=True, return_indices=True)
        starts = earlier.offsets[at].astype(np.int64)
        lengths = earlier.offsets[at + 1] - starts
        theirs = earlier.items[ranges(starts, lengths)].astype(np.int64)
        there = who.repeat(lengths) * n_items + theirs
        there = there[theirs < n_items]
        met.append(there[pc.is_in(pa.array(there), wanted).to_numpy(zero_copy_only=False)])
    return np.isin(pairs, np.concatenate(met))
