"""The interests of all users of a rank as columns, and where each user's interests are in them."""

import math
from typing import NamedTuple

import torch

from dist_imsr.distributed import keyed_random
from dist_imsr.distributed.columns import move_rows
from dist_imsr.model.interests import Interests

_INTERESTS, _QUERIES = 0x1D7E, 0x90E7  # streams of random numbers
_EPSILON = 1e-8
DRAWN = 1 << 12  # interests drawn at a time; they fit a processor's cache with all temporaries of a draw


class Slots(NamedTuple):
    """The interests of all users of a rank, user after user; S = sum K_u.

    Args:
        values: ``[S, d]``, the vectors h_k.
        birth_span: ``[S]`` int16, the span in which each interest was created.
        queries: ``[S, d_a]``, each interest's column of W_u (Eq. 8); d_a is 0 for base models without queries.
        moments: ``[S, 1]``, the queries' row-wise Adagrad state; ``[S, 0]`` without queries.
        states: ``[S, m]``, the state of a life-long base model, zero before a user's first interaction; m is 0 for
            other base models.
    """

    values: torch.Tensor
    birth_span: torch.Tensor
    queries: torch.Tensor
    moments: torch.Tensor
    states: torch.Tensor

    @classmethod
    def empty(cls, dim: int, query_dim: int, state_dim: int, device: torch.device) -> "Slots":
        """Columns without rows, of widths d, d_a and m."""
        return cls(
            values=torch.zeros(0, dim, device=device),
            birth_span=torch.zeros(0, dtype=torch.int16, device=device),
            queries=torch.zeros(0, query_dim, device=device),
            moments=torch.zeros(0, min(query_dim, 1), device=device),
            states=torch.zeros(0, state_dim, device=device),
        )

    @property
    def bytes_per_interest(self) -> int:
        """The memory of one interest in all columns."""
        return sum(math.prod(column.shape[1:]) * column.element_size() for column in self)

    def replaced(self, rows: int, columns: dict[str, torch.Tensor]) -> "Slots":
        """Columns in the place of these, on the same device.

        Args:
            rows: of every column.
            columns: by name; the others are zero.

        Returns:
            The new columns.
        """
        old = self._asdict().items()
        zeros = {name: column.new_zeros(rows, *column.shape[1:]) for name, column in old if name not in columns}
        return Slots(**zeros, **{name: column.to(getattr(self, name)) for name, column in columns.items()})

    def selected(self, source: torch.Tensor) -> "Slots":
        """Moves all columns with `move_rows`, which overwrites these."""
        return Slots(*(move_rows(column, source) for column in self))

    def update_queries(self, places: torch.Tensor, gradients: torch.Tensor, learning_rate: float) -> None:
        """One step of row-wise Adagrad for some interests' queries.

        Args:
            places: ``[n]`` int64, their slots, distinct.
            gradients: ``[n, d_a]``.
            learning_rate: its step size.
        """
        self.moments[places] += gradients.square().mean(1, keepdim=True)
        self.queries[places] -= learning_rate / (self.moments[places].sqrt() + _EPSILON) * gradients

    def draw(self, places: torch.Tensor, users: torch.Tensor, span: int, slot: torch.Tensor, seed: int) -> None:
        """Draws the first vectors and queries of new interests (erratum E2).

        Args:
            places: ``[n]`` int64, where they are.
            users: ``[n]`` int64, their users' ids.
            span: in which they are created.
            slot: ``[n]`` int64, their numbers among their users' interests.
            seed: the run's seed.
        """
        dim, query_dim = self.values.shape[1], self.queries.shape[1]
        numbers = torch.arange(int(slot.max()) + 1, device=slot.device)
        queries = keyed_random.normal(query_dim, _QUERIES, seed, span, numbers) / math.sqrt(max(query_dim, 1))
        for at, user, number in zip(*(column.split(DRAWN) for column in (places, users, slot)), strict=True):
            self.values.index_copy_(0, at, keyed_random.normal(dim, _INTERESTS, seed, user, span, number))
            self.queries.index_copy_(0, at, queries.index_select(0, number))


def sources_around(places: torch.Tensor, total: int) -> torch.Tensor:
    """Where each row of a column comes from once new rows are inserted.

    Args:
        places: ``[n]`` int64, ascending, the new rows.
        total: rows with the new ones.

    Returns:
        ``[total]`` int64, ascending, for `move_rows`; a new row has the source of the row before it.
    """
    old = torch.ones(total, dtype=torch.bool, device=places.device).index_fill_(0, places, False)
    return old.cumsum(0).sub_(1).clamp_(min=0)


class Layout(NamedTuple):
    """How many interests each of some users has, on the host: sizes that no step has to read from a device.

    Args:
        counts: ``[B]`` int64, K_u.
        older: ``[B]`` int64, those that are older than the span; they come first.
    """

    counts: torch.Tensor
    older: torch.Tensor

    @property
    def most(self) -> int:
        """K, to which the users' interests are padded."""
        return int(self.counts.max()) if len(self.counts) else 0

    def real(self) -> torch.Tensor:
        """The places of all interests in ``[B * K]``, ascending."""
        return self._places(torch.zeros_like(self.counts), self.counts)

    def existing(self) -> torch.Tensor:
        """The places of the older interests in ``[B * K]``, ascending."""
        return self._places(torch.zeros_like(self.counts), self.older)

    def new(self) -> torch.Tensor:
        """The places in ``[B * K]`` of the interests that the span created for users who have older ones."""
        return self._places(self.older, (self.counts - self.older) * (self.older > 0))

    def _places(self, first: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        skipped = torch.arange(len(counts)) * self.most + first - (counts.cumsum(0) - counts)
        skipped = skipped.repeat_interleave(counts)
        return skipped + torch.arange(len(skipped))


def padded_places(
    offsets: torch.Tensor, rows: torch.Tensor, most: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The slots of some users' interests, padded to the largest K_u among them.

    Args:
        offsets: ``[users + 1]`` int64, the first slot of each user, and S.
        rows: ``[B]`` int64, users.
        most: that K_u, if the host knows it; reading it from a device waits.

    Returns:
        ``[B, K]`` int64, any number for padding, and ``[B, K]`` bool, false for padding.
    """
    rows = rows.to(offsets.device)
    first, counts = offsets[rows], offsets[rows + 1] - offsets[rows]
    if most is None:
        most = int(counts.max()) if len(rows) else 0
    slot = torch.arange(most, device=rows.device)
    return first.unsqueeze(1) + slot, slot < counts.unsqueeze(1)


class View(NamedTuple):
    """Copies of what training does not change of some users' interests, padded to the largest K_u among them.

    Args:
        interests: ``[B, K, d]``.
        existing: ``[B, K]`` bool, the interests that are older than the span.
        states: ``[B, K, m]``; zero for padding.
    """

    interests: Interests
    existing: torch.Tensor
    states: torch.Tensor


class StoreSnapshot(NamedTuple):
    """Which interests a store had, and their queries; for `InterestStore.restore`.

    Args:
        offsets: the first slot of each user.
        queries: of `Slots`.
        moments: of `Slots`.
    """

    offsets: torch.Tensor
    queries: torch.Tensor
    moments: torch.Tensor
