"""Items that are met by the users who met a user's own items."""

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torchrec import JaggedTensor

from dist_imsr.baselines.dense import SizeLimits, dense_ranks, user_items
from dist_imsr.baselines.known import Known
from dist_imsr.checks import require
from dist_imsr.data.history import PastItems
from dist_imsr.evaluation.metrics import Ranks


@dataclass
class ItemKNNConfig(SizeLimits):
    """The cosine of an item's users and another's, summed over a user's own items, the later the heavier.

    Args:
        decay: what the weight of an own item is multiplied with at each of the user's interactions after its latest.
    """

    decay: float = 0.98

    def __post_init__(self) -> None:
        require(0 < self.decay <= 1, "item_knn.decay", self.decay, "above 0, 1 at most")


class ItemKNN:
    """The baseline.

    Args:
        known: what it may look at.
        config: its section.
    """

    def __init__(self, known: Known, config: ItemKNNConfig) -> None:
        self._known, self._decay = known, config.decay
        met = user_items(known).astype(np.float64)
        met.data[:] = 1
        users = met.sum(axis=0)
        # The cosine of items i and j is (columns' columns)[i, j], which is never made: its products with histories are.
        self._columns = (met @ sp.diags_array(1 / np.sqrt(np.maximum(users, 1)))).tocsr()
        self.facts = {"decay": config.decay}

    def ranks(self, users: torch.Tensor, targets: JaggedTensor) -> Ranks:
        """As of `dist_imsr.baselines.known.Baseline`."""
        return dense_ranks(self._known, users, targets, self._scores)

    def _scores(self, users: np.ndarray, past: PastItems) -> np.ndarray:
        weights = np.zeros((self._known.items, len(users)))
        weights[past.item, past.owner] = past.recency(self._decay)
        return np.ascontiguousarray((self._columns.T @ (self._columns @ weights)).T)
