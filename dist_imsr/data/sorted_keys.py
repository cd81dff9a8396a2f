"""Looks up keys in sorted arrays."""

import numpy as np


def find_sorted(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Finds keys among sorted ones.

    Args:
        keys: ``[n]`` integers, ascending.
        wanted: ``[m]`` integers. With the type of ``keys``, numpy searches without a copy of ``keys``.

    Returns:
        ``[m]`` int64, the first index of each key; -1 for one that is not there.
    """
    if not len(keys):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)
