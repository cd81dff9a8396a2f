"""Hit ratio, NDCG, recall and MRR from exact ranks, under both target protocols (erratum E9)."""

from collections.abc import Sequence

import torch

from dist_imsr.data.batch import TestBatch
from dist_imsr.data.jagged import owners_of


def discount(ranks: torch.Tensor, top: int) -> torch.Tensor:
    """The gain of a target in DCG@N: 1 / log2(rank + 1) for ranks up to ``top``, else 0; float64."""
    ranks = ranks.double()
    return torch.where(ranks <= top, 1 / torch.log2(ranks + 1), 0.0)


class Metrics:
    """Sums of metrics over users; add ``sums`` of all ranks before `result`.

    ``last``: a user's latest interaction is the only target. ``any``: a hit is any of the user's interactions, and the
    ideal DCG has min(N, number of targets) hits. ``new`` and ``existing`` split the ``last`` targets by whether the
    user met the item in an earlier span. ``recall`` is the share of all of the user's targets in the top N, ``mrr`` the
    reciprocal rank of the ``last`` target if it is in the top N, else 0.

    Args:
        tops: every N.
    """

    def __init__(self, tops: Sequence[int]) -> None:
        self.tops = tops
        self.names = [f"{name}@{top}{protocol}" for top in tops for name, protocol in _NAMES]
        # users, users with a new target; the sum of each name; the hits of new targets for each N
        self.sums = torch.zeros(2 + len(self.names) + len(tops), dtype=torch.float64)

    def add(self, batch: TestBatch, ranks: torch.Tensor) -> dict[str, torch.Tensor]:
        """Adds a block of users with the ranks of all of their targets, ``[A]``.

        Returns:
            The metrics of each user by name, ``[B]`` float64.
        """
        ranks, lengths = ranks.double(), batch.targets.lengths()
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
        found = dict(zip(self.names, (value.double() for value in values), strict=True))
        new_hits = [found[f"hr@{top}"] * new for top in self.tops]
        rows = [torch.ones_like(zeros), new, *found.values(), *new_hits]
        self.sums += torch.stack([row.sum() for row in rows]).to(self.sums.device)
        return found

    def result(self) -> dict[str, float | None]:
        """Means over all users by the names of metrics.jsonl, and ``users``; a mean over no users is None."""
        users, new, *sums = self.sums.tolist()

        def mean(total: float, count: float) -> float | None:
            return total / count if count else None

        metrics = {name: mean(total, users) for name, total in zip(self.names, sums, strict=False)}
        for top, new_hits in zip(self.tops, sums[len(self.names) :], strict=True):
            hits = sums[self.names.index(f"hr@{top}")]
            metrics[f"hr@{top}_new"] = mean(new_hits, new)
            metrics[f"hr@{top}_existing"] = mean(hits - new_hits, users - new)
        return {"users": int(users)} | metrics


_NAMES = (("hr", ""), ("ndcg", ""), ("hr", "_any"), ("ndcg", "_any"), ("recall", ""), ("mrr", ""))
