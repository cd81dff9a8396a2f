"""Every user's interests, held by the rank that owns the user's bucket."""

from dataclasses import dataclass
from typing import Literal

import torch

from dist_imsr.distributed import keyed_random
from dist_imsr.distributed.topology import Topology
from dist_imsr.model.interests import Interests

_STREAM = 0x1D7E


@dataclass
class InterestStoreConfig:
    """Where interests live.

    Args:
        memory: of which kind of memory; ``host`` leaves a GPU's memory to the catalogue.
    """

    memory: Literal["device", "host"] = "device"


class InterestStore:
    """Jagged interest vectors of a contiguous range of users; a row is a user's number inside that range.

    Memory and cost follow the interests that exist: a user who was not met yet has none.

    Args:
        users: how many users this rank owns.
        first_user: the dense id of row 0.
        dim: d, the width of an interest.
        seed: keys the first vectors of new interests.
        device: where the values live.
    """

    def __init__(self, users: int, first_user: int, dim: int, seed: int, device: torch.device) -> None:
        self.first_user = first_user
        self.seed = seed
        self.values = torch.zeros(0, dim, device=device)  # [sum K_u, d]
        self.born = torch.zeros(0, dtype=torch.int16, device=device)  # [sum K_u], the span of birth
        self.offsets = torch.zeros(users + 1, dtype=torch.int64, device=device)

    @classmethod
    def build(
        cls, config: InterestStoreConfig, bucket_offsets: list[int], dim: int, seed: int, topology: Topology
    ) -> "InterestStore":
        """An empty store for the buckets that this rank owns.

        Args:
            config: the store's section.
            bucket_offsets: the first user of each bucket, and the number of users.
            dim: d.
            seed: the run's seed.
            topology: this rank's place.

        Returns:
            The store.
        """
        buckets = topology.buckets(len(bucket_offsets) - 1)
        first, end = bucket_offsets[buckets.start], bucket_offsets[buckets.stop]
        device = topology.device if config.memory == "device" else torch.device("cpu")
        return cls(end - first, first, dim, seed, device)

    @property
    def counts(self) -> torch.Tensor:
        """K_u of every row, ``[users]`` int64."""
        return self.offsets.diff()

    def gather(self, rows: torch.Tensor, device: torch.device | None = None) -> Interests:
        """The padded view of some users' interests.

        Args:
            rows: ``[B]`` int64.
            device: where the view is wanted; the store's own by default.

        Returns:
            A copy, ``[B, K, d]`` with K the largest K_u among ``rows``.
        """
        slots, mask = self._slots(rows.to(self.values.device))
        vectors = self.values.new_zeros(*slots.shape, self.values.shape[1])
        vectors[mask] = self.values[slots[mask]]
        return Interests(vectors.to(device or vectors.device), mask.to(device or mask.device))

    def scatter(self, rows: torch.Tensor, interests: Interests) -> None:
        """Writes some users' interests back; every other user's bytes stay as they are.

        Args:
            rows: ``[B]`` int64, distinct.
            interests: with the counts that the store holds, ``[B, K, d]``.
        """
        slots, mask = self._slots(rows.to(self.values.device))
        vectors = interests.vectors.detach().to(self.values)
        self.values[slots[mask]] = vectors[:, : slots.shape[1]][mask]

    def expand(self, rows: torch.Tensor, count: int, span: int) -> None:
        """Gives users more interests, drawn from N(0, I) by (seed, user, span, slot) (erratum E2).

        Costs one pass over the store, once per span.

        Args:
            rows: ``[B]`` int64, distinct.
            count: how many more each of them gets.
            span: the span of birth.
        """
        device = self.values.device
        more = torch.zeros_like(self.counts)
        more[rows.to(device)] = count
        users = torch.arange(len(more), device=device)
        owners = users.repeat_interleave(self.counts)
        shift = more.cumsum(0) - more  # how far each user's old slots move
        kept = torch.arange(len(self.values), device=device) + shift[owners]
        offsets = torch.cat([self.offsets[:1], (self.counts + more).cumsum(0)])

        values = self.values.new_empty(int(offsets[-1]), self.values.shape[1])
        born = self.born.new_full((len(values),), span)
        fresh = torch.ones(len(values), dtype=torch.bool, device=device)
        fresh[kept] = False
        values[kept], born[kept] = self.values, self.born
        new_owners = users.repeat_interleave(more)
        slot = fresh.nonzero().squeeze(1) - offsets[new_owners]
        values[fresh] = keyed_random.normal(
            values.shape[1], _STREAM, self.seed, new_owners + self.first_user, span, slot
        )
        self.values, self.born, self.offsets = values, born, offsets

    def _slots(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Places in ``values`` of each user's interests, ``[B, K]``, and which of them exist."""
        first, counts = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        slot = torch.arange(int(counts.max()) if len(rows) else 0, device=rows.device)
        return first.unsqueeze(1) + slot, slot < counts.unsqueeze(1)
