"""The items that the targets of a step are compared with: some uniform, some as popular as they are."""

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.dataset import Dataset
from dist_imsr.data.sorted_keys import find_sorted


def draw_by_counts(random: np.random.Generator, items: np.ndarray, ends: np.ndarray, size: int) -> np.ndarray:
    """Draws items, each as likely as it has interactions, with repetition.

    Args:
        random: of the draws.
        items: ``[n]`` ids, at least one.
        ends: ``[n]``, the cumulative numbers of their interactions.
        size: the number of draws.
    """
    return items[np.searchsorted(ends, random.integers(ends[-1], size=size), side="right")]


class NegativeSampler:
    """Draws negatives from q, a mixture of the known items and of a span's interactions.

    q(i) = (1 - p) / I + p n_i / N, with I known items and N interactions in the span, n_i of them with item i. Memory
    grows with the number of items in the span, the time of a draw with its logarithm.

    Args:
        dataset: the prepared data.
        span: whose interactions are drawn from; held-out ones count, since the loss takes q out again.
        items: the number of known items.
        size: the number of negatives of a step.
        popular: p; the share of the negatives that are drawn from interactions, rounded to a whole number of them that
            leaves a uniform one, without which the other items could not be drawn.
    """

    def __init__(self, dataset: Dataset, span: int, items: int, size: int, popular: float) -> None:
        self._items, self._popular = items, min(round(size * popular), size - 1)
        self._uniform = size - self._popular
        if self._popular:
            self._ids, counts = dataset.item_counts(span)
            self._starts = np.append(0, counts.cumsum(dtype=np.int64))

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """The ids of a step's negatives, ``[size]`` int64; the same items may be drawn several times."""
        uniform = random.integers(self._items, size=self._uniform)
        if not self._popular:
            return uniform
        return np.concatenate([uniform, draw_by_counts(random, self._ids, self._starts[1:], self._popular)])

    def log_q(self, sequences: JaggedTensor) -> torch.Tensor | None:
        """log(q(i) I) of the items of sequences, ``[n]`` float32: zero where a uniform draw is as likely to have one.

        Returns:
            None if that is so for all items.
        """
        if not self._popular:
            return None
        place = find_sorted(self._ids, sequences.values().numpy().astype(self._ids.dtype))
        counts = np.where(place >= 0, self._starts[place + 1] - self._starts[place], 0)
        popular = self._popular / (self._popular + self._uniform)
        ratio = 1 + popular * (counts * (self._items / self._starts[-1]) - 1)
        return torch.from_numpy(np.log(ratio).astype(np.float32))
