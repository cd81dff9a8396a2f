"""Hit ratio and NDCG from exact ranks, under both target protocols (erratum E9)."""

import torch

from dist_imsr.data.batch import TestBatch


def discount(ranks: torch.Tensor, top: int) -> torch.Tensor:
    """The gain of a target in DCG.

    Args:
        ranks: any shape, 1 is the best.
        top: N.

    Returns:
        1 / log2(rank + 1) within the top N, else 0; float64.
    """
    ranks = ranks.double()
    return torch.where(ranks <= top, 1 / torch.log2(ranks + 1), 0.0)


class Metrics:
    """Sums over users, to be divided once all ranks' sums are added.

    ``last``: a user's latest interaction is the only target. ``any``: a hit is any of the user's interactions, and the
    ideal DCG is that of min(N, number of targets) hits. ``new`` and ``existing`` split the ``last`` targets by whether
    the user met the item in an earlier span.

    Args:
        top: N.
    """

    def __init__(self, top: int) -> None:
        self.top = top
        # users, new users; hits and gains: last, any, hits of new targets
        self.sums = torch.zeros(7, dtype=torch.float64)

    def add(self, batch: TestBatch, ranks: torch.Tensor) -> None:
        """Counts a block of users.

        Args:
            batch: their targets.
            ranks: ``[number of targets]``, of the targets' values.
        """
        ranks, lengths = ranks.double(), batch.targets.lengths()
        owners = torch.arange(len(lengths), device=ranks.device).repeat_interleave(lengths)
        zeros = torch.zeros(len(lengths), dtype=torch.float64, device=ranks.device)
        best = torch.full_like(zeros, torch.inf).scatter_reduce(0, owners, ranks, "amin")
        ideal = discount(torch.arange(1, self.top + 1, device=ranks.device), self.top).cumsum(0)
        gain = zeros.index_add(0, owners, discount(ranks, self.top)) / ideal[lengths.clamp(1, self.top) - 1]
        last, new = ranks[batch.last], batch.last_is_new
        rows = [torch.ones_like(zeros), new, last <= self.top, discount(last, self.top), best <= self.top, gain]
        rows.append((last <= self.top) & new)
        self.sums += torch.stack([row.double().sum() for row in rows]).to(self.sums.device)

    def result(self) -> dict[str, float | None]:
        """The metrics of all users added so far.

        Returns:
            Fractions in [0, 1] by the names of metrics.jsonl, and ``users``; a mean over nobody is None.
        """
        users, new, last_hits, last_gain, any_hits, any_gain, new_hits = self.sums.tolist()

        def mean(total: float, count: float) -> float | None:
            return total / count if count else None

        at = f"@{self.top}"
        return {
            "users": int(users),
            f"hr{at}": mean(last_hits, users),
            f"ndcg{at}": mean(last_gain, users),
            f"hr{at}_any": mean(any_hits, users),
            f"ndcg{at}_any": mean(any_gain, users),
            f"hr{at}_new": mean(new_hits, new),
            f"hr{at}_existing": mean(last_hits - new_hits, users - new),
        }
