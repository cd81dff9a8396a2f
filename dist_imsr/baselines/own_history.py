"""Each user's own items, by a count that decays, and then the popular ones of the last span."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.baselines.known import Known, TargetItems, target_items
from dist_imsr.baselines.popular import Popularity
from dist_imsr.baselines.ranks import count_own, place
from dist_imsr.checks import require
from dist_imsr.data.history import PastItems
from dist_imsr.evaluation.metrics import Ranks, discount
from dist_imsr.evaluation.repeats import DECAYS


@dataclass
class OwnHistoryConfig:
    """A user's own items by their decayed count, filled up with the popular ones of the last span.

    Args:
        decays: what an interaction's count is multiplied with at each later interaction of the user. Before each test
            the best one is chosen by NDCG on the users' second last interactions of the last span, from what was before
            them.
    """

    decays: list[float] = field(default_factory=lambda: list(DECAYS))

    def __post_init__(self) -> None:
        possible = bool(self.decays) and all(0 < decay <= 1 for decay in self.decays)
        require(possible, "own_history.decays", self.decays, "numbers above 0, 1 at most")


class OwnHistory:
    """The baseline.

    Args:
        known: what it may look at.
        config: its section.
    """

    def __init__(self, known: Known, config: OwnHistoryConfig) -> None:
        self._known = known
        self._popularity = Popularity(known.dataset, range(known.span, known.span + 1), known.items)
        self._decay = choose_decay(known, config.decays)
        self.facts = {"decay": self._decay}

    def ranks(self, users: torch.Tensor, targets: JaggedTensor) -> Ranks:
        """As of `dist_imsr.baselines.known.Baseline`."""
        [ranks] = _ranks(self._known.past(users), target_items(targets), self._popularity, [self._decay])
        return ranks


def choose_decay(known: Known, decays: Sequence[float]) -> float:
    """The decay with the highest NDCG on the last span's validation targets, the first of equals; collective.

    Args:
        known: what a baseline may look at.
        decays: those to choose from.
    """
    if len(decays) == 1:
        return decays[0]
    before, items = known.span - 1, known.dataset.items_by_span[known.span]
    popularity = Popularity(known.dataset, range(before, before + 1), items)
    gains = torch.zeros(len(decays), dtype=torch.float64)
    for batch in known.validation():
        found = _ranks(known.training_past(batch.users), target_items(batch.targets), popularity, decays)
        gains += torch.stack([discount(ranks.all_items, known.top).sum() for ranks in found])
    return decays[int(known.topology.sum(gains).argmax())]


def _ranks(past: PastItems, targets: TargetItems, popularity: Popularity, decays: Sequence[float]) -> list[Ranks]:
    """The ranks with each decay."""
    at = targets.places(past)
    met = at >= 0
    others = popularity.ranks(past, targets, met).unseen
    assert others is not None
    behind = np.bincount(past.owner, minlength=targets.owner.max(initial=-1) + 1)[targets.owner] + others.numpy()
    known, found = TargetItems(targets.owner[met], targets.item[met]), list[Ranks]()
    for decay in decays:
        weights, ranks = past.weights(decay), behind.copy()
        ranks[met] = place(*count_own(past, weights, known, weights[at[met]]))
        found.append(Ranks(torch.from_numpy(ranks), others))
    return found
