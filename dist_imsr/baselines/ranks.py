"""Exact ranks from counts of better and of equal items: 1 + better + ties / 2."""

import numpy as np
import torch

from dist_imsr.baselines.known import TargetItems
from dist_imsr.data.history import PastItems
from dist_imsr.evaluation.metrics import Ranks


def place(better: np.ndarray, equal: np.ndarray) -> np.ndarray:
    """The rank of a target.

    Args:
        better: ``[A]``, the number of items with a higher score.
        equal: ``[A]``, that of items with the same score, the target among them.
    """
    return 1 + better + (equal - 1) / 2


def count_sorted(scores: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts the scores that are above, and equal to, each value.

    Args:
        scores: ``[n]``, ascending.
        values: ``[A]``.
    """
    first, end = (np.searchsorted(scores, values, side) for side in ("left", "right"))
    return len(scores) - end, end - first


def count_own(
    past: PastItems, scores: np.ndarray, targets: TargetItems, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Counts, among the items that the target's user has met, the scores that are above, and equal to, the target's.

    Args:
        past: the users' items.
        scores: ``[m]``, those of the users' items.
        targets: the targets.
        values: ``[A]``, those of the targets.
    """
    # Integers in the order of the scores, so that one sort by user and score serves all users.
    distinct, levels = np.unique(np.concatenate([scores, values]), return_inverse=True)
    count = len(distinct)
    own = np.sort(past.owner * count + levels[: len(scores)])
    key, after = targets.owner * count + levels[len(scores) :], (targets.owner + 1) * count
    first, end = (np.searchsorted(own, key, side) for side in ("left", "right"))
    return np.searchsorted(own, after) - end, end - first


def ranks_of(counts: tuple[np.ndarray, np.ndarray], own: tuple[np.ndarray, np.ndarray], met: np.ndarray) -> Ranks:
    """Ranks among all items and among those that the user has not met.

    Args:
        counts: better and equal among all items.
        own: better and equal among those that the user has met.
        met: ``[A]`` bool, whether the target's user has met it.
    """
    unseen = place(counts[0] - own[0], counts[1] - own[1])
    return Ranks(torch.from_numpy(place(*counts)), torch.from_numpy(np.where(met, np.inf, unseen)))
