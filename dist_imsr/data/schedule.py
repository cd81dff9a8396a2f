"""Who is in global step s: one schedule for the world, of which every rank computes its own part."""

from collections.abc import Callable, Sequence

import numpy as np

_ONE = 1 << 16  # phases are fractions of this
_GOLDEN = 40503  # _ONE over the golden ratio: neighbouring buckets get phases far apart


def generator(*keys: int) -> np.random.Generator:
    """A generator as a pure function of its keys.

    Args:
        keys: non-negative integers, e.g. a stream's number, the seed, the span, the epoch, the bucket.

    Returns:
        A Philox generator of its own.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(keys)))


class Schedule:
    """An epoch's global steps over the users of some buckets.

    Global step s takes, from every bucket b of n_b users in the order that the caller keeps, the users
    floor(s n_b / S + phi_b) .. floor((s + 1) n_b / S + phi_b) - 1 with S = ceil(users / batch). All ranks have the same
    number of steps, and the global batch is the same for any number of ranks. The phases phi_b in [0, 1) are fixed by
    the bucket's number; without them, buckets with fewer users than there are steps would all fall silent in the same
    steps and speak in the same others.

    Args:
        buckets: the numbers of the buckets at hand: this rank's, or all.
        sizes: n_b of each of them.
        users: the number of users in the buckets of all ranks.
        batch: users in a global batch, about.
    """

    def __init__(self, buckets: Sequence[int], sizes: Sequence[int] | np.ndarray, users: int, batch: int) -> None:
        self.steps = -(-users // batch)
        self.users, self.buckets = users, buckets
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self._offsets = self.sizes.cumsum() - self.sizes
        self._phases = np.asarray(buckets, dtype=np.int64) * _GOLDEN % _ONE

    def places(self, step: int) -> np.ndarray:
        """The users of a step as places in the concatenation of the buckets at hand.

        Args:
            step: s, from 0 to ``steps - 1``.

        Returns:
            ``[n]`` int64, ascending.
        """
        first, last = self._first(step), self._first(step + 1)
        return ranges(self._offsets + first, last - first)

    def step_of_places(self) -> np.ndarray:
        """The step that takes each place in the concatenation of the buckets at hand.

        Returns:
            ``[sum n_b]`` int64.
        """
        each = np.arange(len(self.sizes)).repeat(self.sizes)
        place = np.arange(len(each)) - self._offsets[each]
        # The largest s whose first place is not beyond this one: s n_b / S + phi_b < place + 1.
        return (((place + 1) * _ONE - self._phases[each]) * self.steps - 1) // (self.sizes[each] * _ONE)

    def shuffled(self, *keys: int) -> np.ndarray:
        """Shuffles users inside their buckets, each bucket by its own key.

        Args:
            keys: of the shuffle, e.g. seed, span and epoch; the bucket's number is added.

        Returns:
            A permutation of the concatenation of the buckets, ``[sum n_b]`` int64, that keeps buckets apart.
        """
        order = self.drawn(np.random.Generator.permutation, *keys).astype(np.int64)
        return order + self._offsets.repeat(self.sizes)

    def drawn(self, draw: Callable[[np.random.Generator, int], np.ndarray], *keys: int) -> np.ndarray:
        """Draws for every user, each bucket by its own key.

        Args:
            draw: takes a generator and a bucket's size, and gives one number a user.
            keys: of the draw; the bucket's number is added.

        Returns:
            ``[sum n_b]``.
        """
        each = zip(self.buckets, self.sizes.tolist(), strict=True)
        return np.concatenate([np.empty(0), *(draw(generator(*keys, bucket), size) for bucket, size in each)])

    def _first(self, step: int) -> np.ndarray:
        """The first place that a step takes inside each bucket, ``[buckets]``."""
        return (step * self.sizes * _ONE + self._phases * self.steps) // (_ONE * max(self.steps, 1))


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenates the ranges ``starts[i] .. starts[i] + lengths[i] - 1`` without a loop.

    Args:
        starts: ``[n]`` int64.
        lengths: ``[n]`` int64, at least 0.

    Returns:
        ``[sum lengths]`` int64.
    """
    before = lengths.cumsum() - lengths
    return np.arange(lengths.sum()) + (starts - before).repeat(lengths)
