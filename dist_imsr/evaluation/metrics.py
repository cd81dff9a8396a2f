"""Hit ratio, NDCG, recall and MRR from exact ranks, under both target protocols (erratum E9)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dist_imsr.data.batch import TestBatch
from dist_imsr.data.jagged import owners_of


class Ranks(NamedTuple):
    """The ranks of targets, 1 for the best.

    Args:
        all_items: ``[A]`` float64, among all known items.
        unseen: ``[A]`` float64, among the items that the user has not met, infinite for a target that the user has met;
            None if it is not known what users have met.
    """

    all_items: torch.Tensor
    unseen: torch.Tensor | None = None

    def without_seen(self) -> "Ranks":
        """The ranks where items that a user has met are left out."""
        assert self.unseen is not None
        return Ranks(self.unseen, self.unseen)


def discount(ranks: torch.Tensor, top: int) -> torch.Tensor:
    """The gain of a target in DCG@N: 1 / log2(rank + 1) for ranks up to ``top``, else 0; float64."""
    ranks = ranks.double()
    return torch.where(ranks <= top, 1 / torch.log2(ranks + 1), 0.0)


class Metrics:
    """Sums of metrics over users; add ``sums`` of all ranks before `result`.

    ``last``: a user's latest interaction is the only target. ``any``: a hit is any of the user's interactions, and the
    ideal DCG has min(N, number of targets) hits. ``new`` and ``existing`` split the ``last`` targets by whether the
    user met the item in an earlier span. ``recall`` is the share of all of the user's targets in the top N, ``mrr`` the
    reciprocal rank of the ``last`` target if it is in the top N, else 0. ``unseen`` judges a stage that retrieves
    discoveries: the ``last`` targets that are new to the user, ranked among the items that are new to the user.

    Args:
        tops: every N.
    """

    def __init__(self, tops: Sequence[int]) -> None:
        self.tops = tops
        self.names = [f"{name}@{top}{protocol}" for top in tops for name, protocol in _NAMES]
        self.unseen_names = [f"{name}@{top}_unseen" for top in tops for name in ("hr", "ndcg")]
        self._split = [name for top in tops for name in (f"hr@{top}", f"ndcg@{top}")]
        # users, users with a new target, those whose unseen ranks are known; the sum of each name; of each
        # split name over new targets; of each unseen name
        sums = 3 + len(self.names) + len(self._split) + len(self.unseen_names)
        self.sums = torch.zeros(sums, dtype=torch.float64)

    def add(self, batch: TestBatch, found: Ranks) -> dict[str, torch.Tensor]:
        """Adds a block of users with the ranks of all of their targets.

        Returns:
            The metrics of each user by name, ``[B]`` float64; those of unseen items, if their ranks are known, are NaN
            for a user whose ``last`` target is not new.
        """
        ranks, lengths = found.all_items.double(), batch.targets.lengths()
        owners = owners_of(batch.targets)
        zeros = torch.zeros(len(lengths), dtype=torch.float64, device=ranks.device)
        best = torch.full_like(zeros, torch.inf).scatter_reduce(0, owners, ranks, "amin")
        last, new = ranks[batch.last], batch.last_is_new.double()
        values = []
        for top in self.tops:
            ideal = discount(torch.arange(1, top + 1, device=ranks.device), top).cumsum(0)
            gain = zeros.index_add(0, owners, discount(ranks, top)) / ideal[lengths.clamp(1, top) - 1]
            hits = zeros.index_add(0, owners, (ranks <= top).double())
            hit = last <= top
            values += [hit, discount(last, top), best <= top, gain, hits / lengths.clamp(min=1), hit / last]
        each = dict(zip(self.names, (value.double() for value in values), strict=True))
        unseen = zeros.new_full(zeros.shape, torch.inf) if found.unseen is None else found.unseen.double()[batch.last]
        unseen_values = [value for top in self.tops for value in ((unseen <= top).double(), discount(unseen, top))]
        known = new * (found.unseen is not None)
        rows = [
            torch.ones_like(zeros),
            new,
            known,
            *each.values(),
            *(each[name] * new for name in self._split),
            *(value * new for value in unseen_values),
        ]
        self.sums += torch.stack([row.sum() for row in rows]).to(self.sums.device)
        if found.unseen is not None:
            none = ~batch.last_is_new
            each |= {
                name: value.masked_fill(none, torch.nan)
                for name, value in zip(self.unseen_names, unseen_values, strict=True)
            }
        return each

    def result(self) -> dict[str, float | None]:
        """Means over all users by the names of metrics.jsonl, and ``users``; a mean over no users is None."""
        users, new, known, *sums = self.sums.tolist()

        def mean(total: float, count: float) -> float | None:
            return total / count if count else None

        totals = dict(zip(self.names, sums, strict=False))
        metrics = {name: mean(total, users) for name, total in totals.items()}
        of_new, of_unseen = sums[len(self.names) :], sums[len(self.names) + len(self._split) :]
        for name, total in zip(self._split, of_new, strict=False):
            metrics[f"{name}_new"] = mean(total, new)
            metrics[f"{name}_existing"] = mean(totals[name] - total, users - new)
        for name, total in zip(self.unseen_names, of_unseen, strict=True):
            metrics[name] = mean(total, known)
        return {"users": int(users)} | metrics


_NAMES = (("hr", ""), ("ndcg", ""), ("hr", "_any"), ("ndcg", "_any"), ("recall", ""), ("mrr", ""))
