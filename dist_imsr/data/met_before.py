"""Whether the users of interactions met their items in an earlier span."""

import itertools

import numpy as np

from dist_imsr.data.dataset import Dataset
from dist_imsr.data.schedule import ranges
from dist_imsr.data.sorted_keys import find_sorted

_BLOCK = 1 << 16  # rows
_ODD, _OTHER_ODD = 0x9E3779B1, 0x85EBCA77  # multipliers whose products spread over all bits


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

    The cost follows the rows, and what their users did before, of which a hash table of bits lets few pass.

    Args:
        history: the data set.
        bucket: of the users.
        users: ``[n]`` user ids, in ascending order.
        items: ``[n]`` item ids.

    Returns:
        ``[n]`` bool.
    """
    rows = np.cumsum(np.diff(users, prepend=users[:1]) != 0)  # of distinct users, from 0
    stranger = len(users)  # no user's row
    row_of = np.full(max(history.entries[-1].users[bucket], 1), stranger, np.uint32)  # by local number
    locals_ = users // history.buckets
    known = locals_ < len(row_of)
    row_of[locals_[known]] = rows[known]
    n_items = int(items.max(initial=0)) + 1
    pairs = rows * n_items + items
    bits = min(32, max(10, len(users).bit_length() + 5))  # one of 32 strangers' pairs passes
    wanted = np.zeros(1 << bits, bool)
    wanted[_hashed(rows.astype(np.uint32), items, bits)] = True
    met = [np.empty(0, np.int64)]
    for span in range(history.first_kept, history.spans):
        earlier = history.sequences(span, bucket)
        row = row_of[earlier.users // history.buckets]
        theirs, lengths = earlier.items, np.diff(earlier.offsets)
        active = row != stranger
        if 3 * lengths[active].sum() < len(theirs):  # else it is faster to read all in order
            theirs = theirs[ranges(earlier.offsets[:-1][active].astype(np.int64), lengths[active].astype(np.int64))]
            row, lengths = row[active], lengths[active]
        row = row.repeat(lengths)
        passed = np.flatnonzero(np.take(wanted, _hashed(row, theirs, bits)))  # indexing would copy to 64 bits first
        row, theirs = row[passed].astype(np.int64), theirs[passed].astype(np.int64)
        met.append((row * n_items + theirs)[(row != stranger) & (theirs < n_items)])
    found = np.sort(np.concatenate(met))
    return find_sorted(found, pairs) >= 0


def _hashed(rows: np.ndarray, items: np.ndarray, bits: int) -> np.ndarray:
    """So many bits of a hash of each pair; both arrays are of 32 bits, or long items lose their upper bits."""
    mixed = items.astype(np.uint32)
    mixed *= np.uint32(_ODD)
    mixed += rows * np.uint32(_OTHER_ODD)
    mixed >>= np.uint32(32 - bits)
    return mixed
