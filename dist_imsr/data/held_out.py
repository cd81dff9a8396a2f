"""Which of a user's interactions in a span training must not see."""

import numpy as np

HELD_OUT = 2  # interactions of a user and span: the last one for testing, the second last for validation
SHORTEST_SPLIT = 3  # a user with fewer interactions in a span trains on all of them


def held_out(lengths: np.ndarray) -> np.ndarray:
    """The number of each user's interactions in a span that training must not see.

    Args:
        lengths: ``[n]``, the number of interactions of each user.

    Returns:
        ``[n]``: 2 for users with at least 3 interactions, else 0.
    """
    return np.where(lengths >= SHORTEST_SPLIT, HELD_OUT, 0)


def trained_places(lengths: np.ndarray) -> np.ndarray:
    """Which interactions of a span training may see, user after user, ``[sum of lengths]`` bool; as in `held_out`."""
    position = np.arange(lengths.sum()) - (lengths.cumsum() - lengths).repeat(lengths)
    return position < (lengths - held_out(lengths)).repeat(lengths)
