"""The items that users have met: scored by the users' own ranks and not by the ranks that hold the catalogue's rows."""

from typing import NamedTuple

import torch
from torchrec import JaggedTensor

from dist_imsr.data.jagged import owners_of
from dist_imsr.model.interests import Interests
from dist_imsr.model.scoring import Score, score

_NUMBERS = 1 << 24  # float64 numbers of gathered interests at a time


class SeenItems(NamedTuple):
    """The items that each user of a block has met.

    Args:
        items: B sequences of distinct item ids, ascending.
        embeddings: ``[n, row width]``, of the values of ``items``.
        bonus: ``[n]`` float64, what is added to the score of each item (erratum E11); None for nothing.
    """

    items: JaggedTensor
    embeddings: torch.Tensor
    bonus: torch.Tensor | None = None

    def scores(self, interests: Interests, how: Score) -> torch.Tensor:
        """The score of each item for its user, with its bonus, ``[n]`` float64."""
        scores = self.plain_scores(interests, how)
        return scores if self.bonus is None else scores + self.bonus

    def plain_scores(self, interests: Interests, how: Score) -> torch.Tensor:
        """The score of each item for its user, ``[n]`` float64."""
        owners = owners_of(self.items)
        scores = torch.empty(len(owners), dtype=torch.float64, device=owners.device)
        size = max(1, _NUMBERS // max(1, interests.vectors.shape[1] * interests.vectors.shape[2]))
        for part in (slice(first, first + size) for first in range(0, len(owners), size)):
            own = Interests(interests.vectors[owners[part]].double(), interests.mask[owners[part]])
            scores[part] = score(own, self.embeddings[part].double().unsqueeze(1), how).squeeze(1)
        return scores

    def place_of(self, targets: JaggedTensor) -> torch.Tensor:
        """The index of each target among the values of ``items``, ``[A]`` int64; -1 for one that its user has not met.

        Args:
            targets: B sequences of item ids.
        """
        items, wanted = self.items.values(), targets.values()
        base = 1 + int(torch.cat([items, wanted]).amax()) if len(items) and len(wanted) else 1
        keys, wanted = owners_of(self.items) * base + items, owners_of(targets) * base + wanted
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return torch.where(keys[place] == wanted, place, -1) if len(keys) else torch.full_like(wanted, -1)

    def count_better(
        self,
        scores: torch.Tensor,
        targets: JaggedTensor,
        place: torch.Tensor,
        low: torch.Tensor,
        high: torch.Tensor,
    ) -> torch.Tensor:
        """How many other met items beat each target; a tie counts as half.

        Args:
            scores: ``[n]`` float64, the score of each met item.
            targets: B sequences of item ids.
            place: ``[A]``, of `place_of`.
            low: ``[A]``, the lowest score that ties with each target.
            high: ``[A]``, the highest score that ties with it.

        Returns:
            ``[A]`` float64.
        """
        owners, lengths = owners_of(targets), self.items.lengths()
        # Of equal numbers of one user, a lower limit comes first and an upper limit last.
        values = torch.cat([low.double(), scores, high.double()])
        users = torch.cat([owners, owners_of(self.items), owners])
        order = values.argsort(stable=True)
        order = order[users[order].argsort(stable=True)]
        is_item = (order >= len(low)) & (order < len(low) + len(scores))
        before = torch.empty_like(order).index_copy_(0, order, is_item.long().cumsum(0))
        first = lengths.cumsum(0) - lengths  # met items of earlier users
        below = before[: len(low)] - first[owners]
        not_above = before[len(low) + len(scores) :] - first[owners]
        better = (lengths[owners] - not_above).double() + 0.5 * (not_above - below)
        met = place >= 0
        itself = scores[place[met]]
        better[met] -= 0.5 * ((itself >= low[met]).double() + (itself > high[met]).double())
        return better
