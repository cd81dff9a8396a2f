"""Items by their number of interactions, the same list for every user."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.baselines.known import Known, TargetItems, target_items
from dist_imsr.baselines.ranks import count_own, count_sorted, ranks_of
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.history import PastItems
from dist_imsr.data.sorted_keys import find_sorted
from dist_imsr.evaluation.metrics import Ranks


@dataclass
class PopularConfig:
    """The most popular items.

    Args:
        spans: whose interactions are counted: those of the ``last`` span before the tested one, or of ``all`` of them.
    """

    spans: Literal["last", "all"] = "last"


class Popularity:
    """Numbers of interactions, of all users, by item.

    Args:
        dataset: the prepared data.
        spans: those that count.
        items: the number of items that are ranked; all others of them have 0.
    """

    def __init__(self, dataset: Dataset, spans: range, items: int) -> None:
        ids, counts = (np.concatenate(parts) for parts in zip(*map(dataset.item_counts, spans), strict=True))
        self.items = items
        self._ids, place = np.unique(ids, return_inverse=True)
        self._counts = np.bincount(place, counts, minlength=len(self._ids)).astype(np.int64)
        self._sorted = np.sort(self._counts)

    def of(self, items: np.ndarray) -> np.ndarray:
        """The number of interactions of items, ``[n]`` int64."""
        return np.append(self._counts, 0)[find_sorted(self._ids, items)]

    def ranks(self, past: PastItems, targets: TargetItems, met: np.ndarray) -> Ranks:
        """Ranks the targets of users with a past.

        Args:
            past: the users' items.
            targets: the targets.
            met: ``[A]`` bool, whether the target is among them.
        """
        values = self.of(targets.item)
        better, equal = count_sorted(self._sorted, values)
        equal = np.where(values > 0, equal, self.items - len(self._sorted))
        return ranks_of((better, equal), count_own(past, self.of(past.item), targets, values), met)


class Popular:
    """The baseline.

    Args:
        known: what it may look at.
        config: its section.
    """

    def __init__(self, known: Known, config: PopularConfig) -> None:
        first = known.span if config.spans == "last" else 0
        self._known = known
        self._popularity = Popularity(known.dataset, range(first, known.span + 1), known.items)
        self.facts: dict[str, float] = {}

    def ranks(self, users: torch.Tensor, targets: JaggedTensor) -> Ranks:
        """As of `dist_imsr.baselines.known.Baseline`."""
        past, items = self._known.past(users), target_items(targets)
        return self._popularity.ranks(past, items, items.places(past) >= 0)
