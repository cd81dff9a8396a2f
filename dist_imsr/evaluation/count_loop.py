"""The loop of ``counting.count_better``, compiled by Numba: one pass over a tile's dot products."""

import math

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@njit(cache=True, nogil=True, error_model="numpy")
def count_above(
    agreement: Floats,
    rows: Integers,
    low: Floats,
    high: Floats,
    bounds: Floats,
    norms: Floats,
    tiny: float,
    gap: float,
    users: Floats,
    items: Floats,
    fp32_bounds: Floats,
    better: Integers,
    close: npt.NDArray[np.int32],
) -> int:
    """Compares a tile's items with targets.

    A score is at most the largest of its K dot products, and by at most ``gap`` below it, so only items whose largest
    one is near the scores of the user's targets need a softmax.

    Args:
        agreement: ``[b, K, n]``, dot products; -inf for an excluded item.
        rows: ``[a]``, each target's user in the tile, ascending.
        low: ``[a]``, the lowest score that ties.
        high: ``[a]``, the highest score that ties.
        bounds: ``[b]``, the error of a score over the norm of its item.
        norms: ``[n]``, norms of the items.
        tiny: the least error.
        gap: the most by which a score is below the largest dot product; zero if it is the largest dot product.
        users: ``[b, K, d]``.
        items: ``[n, d]``.
        fp32_bounds: ``[b]``, ``bounds`` if dot products are fp32; where smaller, close pairs are multiplied again.
        better: ``[a]``, to which the number of items is added that are certainly better than each target.
        close: ``[a n, 2]``, receives the pairs of a target and an item that are too close to say.

    Returns:
        The number of close pairs.
    """
    num_interests, num_items = agreement.shape[1:]
    largest_norm = norms.max()
    best = np.empty(num_items, np.float32)
    scores = np.empty(num_items, np.float32)
    columns = np.empty(num_items, np.int32)
    again = np.empty((num_interests, 1), np.float32)
    num_close = first = 0
    while first < len(rows):
        user, stop, lowest, highest = rows[first], first, low[first], high[first]
        while stop < len(rows) and rows[stop] == user:
            lowest, highest = min(lowest, low[stop]), max(highest, high[stop])
            stop += 1
        products, margin = agreement[user], max(bounds[user] * largest_norm, tiny)
        floor, ceiling = np.float32(lowest - margin), np.float32(highest + gap + margin)
        above, near = _select(products, floor, ceiling, best, columns)
        for place in range(near):
            scores[place] = _score(products, columns[place], gap)
        for target in range(first, stop):
            better[target] += above
            for place in range(near):
                item, value = columns[place], scores[place]
                error = max(bounds[user] * norms[item], tiny)
                if fp32_bounds[user] < bounds[user] and low[target] - error < value <= high[target] + error:
                    for k in range(num_interests):
                        again[k, 0] = _dot(users[user, k], items[item])
                    value, error = _score(again, 0, gap), max(fp32_bounds[user] * norms[item], tiny)
                if value > high[target] + error:
                    better[target] += 1
                elif value > low[target] - error:
                    close[num_close, 0], close[num_close, 1] = target, item
                    num_close += 1
        first = stop
    return num_close


@njit(cache=True, nogil=True, error_model="numpy")
def _select(
    products: Floats, floor: np.float32, ceiling: np.float32, best: Floats, columns: npt.NDArray[np.int32]
) -> tuple[np.int32, np.int64]:
    """Sorts out items by the largest of their dot products ``[K, n]``.

    Args:
        products: of one user.
        floor: items that are not above it are left out.
        ceiling: items that are above it are counted only.
        best: ``[n]``, receives the largest dot products.
        columns: ``[n]``, receives the items between floor and ceiling.

    Returns:
        The number of items above the ceiling, and of those in ``columns``.
    """
    num_interests, num_items = products.shape
    best[:] = products[0]
    for k in range(1, num_interests):
        for item in range(num_items):
            best[item] = products[k, item] if products[k, item] > best[item] else best[item]
    # Sums of comparisons in place of branches, which the compiler makes vector instructions of.
    num_higher = above = np.int32(0)
    for item in range(num_items):
        num_higher += np.int32(best[item] > floor)
        above += np.int32(best[item] > ceiling)
    near = np.int64(0)
    if num_higher > above:
        for item in range(num_items):
            columns[near] = item
            near += np.int64((best[item] > floor) & (best[item] <= ceiling))
    return above, near


@njit(cache=True, nogil=True, error_model="numpy")
def _score(products: Floats, item: int, gap: float) -> np.float32:
    """`tiles.reduce_interests` for one item, of products ``[K, n]``."""
    best = products[0, item]
    for k in range(1, len(products)):
        best = max(best, products[k, item])
    if not gap:
        return best
    total = weighted = np.float32(0)
    for k in range(len(products)):
        weight = math.exp(products[k, item] - best)
        total += weight
        weighted += weight * products[k, item]
    return weighted / total


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _dot(left: Floats, right: Floats) -> np.float32:
    total = np.float32(0)
    for place in range(len(left)):
        total += left[place] * right[place]
    return total
