"""Items that are met by the users who met a user's own items."""

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
import torch
from torchrec import JaggedTensor

from dist_imsr.baselines.dense import SizeLimits, dense_ranks, user_items
from dist_imsr.baselines.known import Known, PastItems
from dist_imsr.baselines.own_history import DECAYS, check_decays, choose_decay
from dist_imsr.evaluation.metrics import Ranks


@dataclass
class ItemKNNConfig(SizeLimits):
    """The cosine between items' users, summed over a user's own items by their decayed count.

    Args:
        decays: as own_history.decays, and chosen in the same way, by what own_history would get.
    """

    decays: list[float] = field(default_factory=lambda: list(DECAYS))

    def __post_init__(self) -> None:
        check_decays("item_knn.decays", self.decays)


class ItemKNN:
    """The baseline.

    Args:
        known: what it may look at.
        config: its section.
    """

    def __init__(self, known: Known, config: ItemKNNConfig) -> None:
        self._known = known
        met = user_items(known).astype(np.float64)
        met.data[:] = 1
        users = met.sum(axis=0)
        # The cosine of items i and j is (columns' columns)[i, j], which is never made: its products with histories are.
        self._columns = (met @ sp.diags_array(1 / np.sqrt(np.maximum(users, 1)))).tocsr()
        self._decay = choose_decay(known, config.decays)
        self.facts = {"decay": self._decay}

    def ranks(self, users: torch.Tensor, targets: JaggedTensor) -> Ranks:
        """As of `dist_imsr.baselines.known.Baseline`."""
        return dense_ranks(self._known, users, targets, self._scores)

    def _scores(self, users: np.ndarray, past: PastItems) -> np.ndarray:
        weights = np.zeros((past.items, len(users)))
        weights[past.item, past.owner] = past.weights(self._decay)
        return np.ascontiguousarray((self._columns.T @ (self._columns @ weights)).T)
