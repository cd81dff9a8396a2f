"""The users of each global step: one schedule for the world, of which every rank computes its own part."""

from collections.abc import Callable, Sequence

import numpy as np

_ONE = 1 << 16  # phases are fractions of this
_GOLDEN = 40503  # _ONE over the golden ratio, which spreads the phases of neighbouring buckets


def generator(*keys: int) -> np.random.Generator:
    """A Philox generator as a pure function of its keys.

    Args:
        keys: non-negative integers, e.g. the number of a random stream, the seed, the span, the epoch, the bucket.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(keys)))


class Schedule:
    """Assigns the users of some buckets to the global steps of an epoch.

    Global step s takes, from every bucket b of n_b users in the order that the caller keeps, the users
    floor(s n_b / S + phi_b) .. floor((s + 1) n_b / S + phi_b) - 1 with S = ceil(users / batch). All ranks have the same
    number of steps, and the global batch is the same for any number of ranks. The phase phi_b in [0, 1) depends on the
    number of the bucket alone. Without phases, buckets with fewer users than there are steps would all contribute to
    the same steps and leave the others empty.

    Args:
        buckets: the numbers of these buckets: this rank's, or all.
        sizes: n_b of each of them.
        users: the number of users in the buckets of all ranks.
        batch: the approximate number of users in a global batch.
    """

    def __init__(self, buckets: Sequence[int], sizes: Sequence[int] | np.ndarray, users: int, batch: int) -> None:
        self.steps = -(-users // batch)
        self.users, self.buckets = users, buckets
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self._offsets = self.sizes.cumsum() - self.sizes
        self._phases = np.asarray(buckets, dtype=np.int64) * _GOLDEN % _ONE

    def places(self, step: int) -> np.ndarray:
        """The users of a step as indices into the concatenation of these buckets, ``[n]`` int64, ascending."""
        first, last = self._first(step), self._first(step + 1)
        return ranges(self._offsets + first, last - first)

    def step_of_places(self) -> np.ndarray:
        """The step of each index into the concatenation of these buckets, ``[sum n_b]`` int64."""
        each = np.arange(len(self.sizes)).repeat(self.sizes)
        place = np.arange(len(each)) - self._offsets[each]
        # The largest s whose first place is not beyond this one: s n_b / S + phi_b < place + 1.
        return (((place + 1) * _ONE - self._phases[each]) * self.steps - 1) // (self.sizes[each] * _ONE)

    def shuffle(self, *keys: int) -> np.ndarray:
        """Shuffles the users of each bucket.

        Args:
            keys: of the random generator, e.g. seed, span and epoch; the number of the bucket is appended.

        Returns:
            A permutation of the concatenation of the buckets, ``[sum n_b]`` int64, that keeps buckets apart.
        """
        order = self.draw(np.random.Generator.permutation, *keys).astype(np.int64)
        return order + self._offsets.repeat(self.sizes)

    def draw(self, draw: Callable[[np.random.Generator, int], np.ndarray], *keys: int) -> np.ndarray:
        """Draws a number for each user.

        Args:
            draw: takes a generator and the size of a bucket, and returns a number for each of its users.
            keys: of the random generator; the number of the bucket is appended.

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
