"""The items that the targets of a step are compared with: some uniform, some as popular as they are."""

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.dataset import Dataset


class NegativeSampler:
    """Draws negatives from q, a mixture of the known items and of a span's interactions.

    q(i) = (1 - p) / I + p n_i / N, with I known items and N interactions in the span, n_i of them with item i. Memory
    grows with the number of items in the span.

    Args:
        dataset: the prepared data.
        span: whose interactions are drawn from; held-out ones count, since the loss takes q out again.
        items: the number of known items.
        size: the number of negatives of a step.
        popular: p; the share of the negatives that are drawn from interactions, rounded to a whole number of them.
    """

    def __init__(self, dataset: Dataset, span: int, items: int, size: int, popular: float) -> None:
        self._items, self._uniform, self._popular = items, size - round(size * popular), round(size * popular)
        if self._popular:
            self._ids, counts = dataset.item_counts(span)
            self._ends = counts.cumsum(dtype=np.int64)

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """The ids of a step's negatives, ``[size]`` int64; the same items may be drawn several times."""
        uniform = random.integers(self._items, size=self._uniform)
        if not self._popular:
            return uniform
        drawn = random.integers(self._ends[-1], size=self._popular)
        return np.concatenate([uniform, self._ids[np.searchsorted(self._ends, drawn, side="right")]])

    def log_q(self, sequences: JaggedTensor) -> torch.Tensor | None:
        """log(q(i) I) of the items of sequences, ``[n]`` float32: zero where a uniform draw is as likely to have one.

        Returns:
            None if that is so for all items.
        """
        if not self._popular:
            return None
        items = sequences.values().numpy()
        place = np.minimum(np.searchsorted(self._ids, items), len(self._ids) - 1)
        counts = np.where(self._ids[place] == items, np.diff(self._ends, prepend=0)[place], 0)
        popular = self._popular / (self._popular + self._uniform)
        ratio = 1 + popular * (counts * (self._items / self._ends[-1]) - 1)
        return torch.from_numpy(np.log(ratio).astype(np.float32))
