"""Every user's interests, held by the rank that owns the user's bucket."""

import logging
import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch.nn.functional import pad

from dist_imsr import devices
from dist_imsr.checks import require
from dist_imsr.distributed import keyed_random
from dist_imsr.distributed.columns import moved, padded, sent
from dist_imsr.distributed.topology import Topology
from dist_imsr.keys import free
from dist_imsr.model.interests import Interests
from dist_imsr.phases import Phase

logger = logging.getLogger(__name__)

_STREAM, _QUERIES = 0x1D7E, 0x90E7
_EPSILON = 1e-8
DRAWN = 1 << 12  # interests drawn at a time, which a processor's cache holds with all that a draw leaves


@dataclass
class InterestStoreConfig:
    """Where interests live, and how the queries beside them learn.

    Args:
        memory: of which kind of memory; ``auto`` is the device's as long as interests leave as much again of what the
            catalogue leaves free, and from then on the host's, from which a step's interests are fetched ahead.
        query_learning_rate: of ComiRec-SA's queries, under row-wise Adagrad.
    """

    memory: Literal["auto", "device", "host"] = field(default="auto", metadata=free())
    query_learning_rate: float = 0.03

    def __post_init__(self) -> None:
        require(self.query_learning_rate > 0, "store.query_learning_rate", self.query_learning_rate, "above 0")

    def fits(self, needed: int, free: int) -> bool:
        """Whether interests stay on the device.

        Args:
            needed: bytes that they take.
            free: bytes of the device that nothing else takes.

        Returns:
            Whether ``memory`` says so.
        """
        return self.memory == "device" or (self.memory == "auto" and 2 * needed <= free)


class Slots(NamedTuple):
    """The interests of all users of a rank, user after user; S = sum K_u.

    Args:
        values: ``[S, d]``, the vectors h_k.
        birth_span: ``[S]`` int16, the span of each one's birth.
        queries: ``[S, d_a]``, each one's column of W_u (Eq. 8); d_a is 0 where the base model has none.
        moments: ``[S, 1]``, the queries' row-wise Adagrad state; ``[S, 0]`` where there are none.
        states: ``[S, m]``, what a life-long base model keeps of the user's life beside each one, zero before the first
            interaction; m is 0 for the other base models.
    """

    values: torch.Tensor
    birth_span: torch.Tensor
    queries: torch.Tensor
    moments: torch.Tensor
    states: torch.Tensor


class View(NamedTuple):
    """What training does not change of some users' interests, padded to the largest K_u among them.

    Args:
        interests: a copy, ``[B, K, d]``.
        existing: ``[B, K]`` bool, those that are older than the span at hand.
        states: a copy, ``[B, K, m]``; zero for padding.
    """

    interests: Interests
    existing: torch.Tensor
    states: torch.Tensor


class StoreSnapshot(NamedTuple):
    """What `InterestStore.restore` takes: which interests there were, and what their queries had learnt.

    Args:
        offsets: where each user's began.
        queries: of `Slots`.
        moments: of `Slots`.
    """

    offsets: torch.Tensor
    queries: torch.Tensor
    moments: torch.Tensor


class InterestStore:
    """Jagged interests of a contiguous range of users; a row is a user's number inside that range.

    Memory and cost follow the interests that exist: a user who was not met yet has none.

    Args:
        config: the store's section.
        users: how many users this rank owns.
        first_user: the dense id of row 0.
        dim: d, the width of an interest.
        query_dim: d_a, the width of a query; 0 for none.
        seed: keys the first vectors of new interests.
        device: where the values live.
        state_dim: m, the width of a state; 0 for none.
    """

    def __init__(
        self,
        config: InterestStoreConfig,
        users: int,
        first_user: int,
        dim: int,
        query_dim: int,
        seed: int,
        device: torch.device,
        state_dim: int = 0,
    ) -> None:
        self.config, self.first_user, self.seed = config, first_user, seed
        self.slots = Slots(
            values=torch.zeros(0, dim, device=device),
            birth_span=torch.zeros(0, dtype=torch.int16, device=device),
            queries=torch.zeros(0, query_dim, device=device),
            moments=torch.zeros(0, min(query_dim, 1), device=device),
            states=torch.zeros(0, state_dim, device=device),
        )
        self.offsets = torch.zeros(users + 1, dtype=torch.int64, device=device)

    @classmethod
    def build(
        cls,
        config: InterestStoreConfig,
        bucket_offsets: list[int],
        dim: int,
        query_dim: int,
        seed: int,
        topology: Topology,
        state_dim: int = 0,
    ) -> "InterestStore":
        """An empty store for the buckets that this rank owns.

        Args:
            config: the store's section.
            bucket_offsets: the first user of each bucket, and the number of users.
            dim: d.
            query_dim: d_a.
            seed: the run's seed.
            topology: this rank's place.
            state_dim: m.

        Returns:
            The store.
        """
        buckets = topology.buckets(len(bucket_offsets) - 1)
        first, end = bucket_offsets[buckets.start], bucket_offsets[buckets.stop]
        device = torch.device("cpu") if config.memory == "host" else topology.device
        return cls(config, end - first, first, dim, query_dim, seed, device, state_dim)

    @property
    def values(self) -> torch.Tensor:
        """The vectors, ``[S, d]``."""
        return self.slots.values

    @property
    def birth_span(self) -> torch.Tensor:
        """The span of each interest's birth, ``[S]`` int16."""
        return self.slots.birth_span

    @property
    def counts(self) -> torch.Tensor:
        """K_u of every row, ``[users]`` int64."""
        return self.offsets.diff()

    @property
    def owners(self) -> torch.Tensor:
        """The row of each interest's user, ``[S]`` int64."""
        return torch.arange(len(self.counts), device=self.offsets.device).repeat_interleave(self.counts)

    @property
    def bytes(self) -> int:
        """The memory of the slots and the offsets."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.slots, self.offsets))

    @Phase("interests")
    def gather(self, rows: torch.Tensor, device: torch.device | None = None) -> Interests:
        """The padded view of some users' interests.

        Args:
            rows: ``[B]`` int64.
            device: where the view is wanted; the store's own by default.

        Returns:
            A copy, ``[B, K, d]`` with K the largest K_u among ``rows``.
        """
        slots, mask = self._slots(rows)
        return Interests(*(sent(one, device) for one in (padded(self.values, slots, mask), mask)))

    @Phase("interests")
    def view(self, rows: torch.Tensor, span: int, device: torch.device | None = None) -> View:
        """The padded view of some users' interests, with all that training does not change.

        Args:
            rows: ``[B]`` int64.
            span: the span at hand.
            device: where the view is wanted; the store's own by default.

        Returns:
            Copies.
        """
        slots, mask = self._slots(rows)
        values, birth_span, states = (
            padded(one, slots, mask) for one in (self.values, self.birth_span, self.slots.states)
        )
        values, mask, existing, states = (
            sent(one, device) for one in (values, mask, (birth_span < span) & mask, states)
        )
        return View(Interests(values, mask), existing, states)

    @Phase("interests")
    def queries(self, rows: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
        """Some users' queries W_u.

        Args:
            rows: ``[B]`` int64.
            device: where they are wanted; the store's own by default.

        Returns:
            A copy, ``[B, K, d_a]`` in the slots of `gather`; zero for padding.
        """
        return sent(padded(self.slots.queries, *self._slots(rows)), device)

    def created(self, span: int) -> torch.Tensor:
        """The interests that users with older ones gained in a span.

        Args:
            span: of their birth.

        Returns:
            ``[n]`` int64, their places in the slots, ascending.
        """
        known = self.counts > 0
        known[known.clone()] = self.birth_span[self.offsets[:-1][known]] < span  # a user's first interest is the oldest
        return (known.repeat_interleave(self.counts).logical_and_(self.birth_span == span)).nonzero().squeeze(1)

    def norms(self, places: torch.Tensor) -> torch.Tensor:
        """How long some interests are.

        Args:
            places: ``[n]`` int64, in the slots.

        Returns:
            ``[n]``.
        """
        return torch.cat([self.values.index_select(0, part).norm(dim=1) for part in places.split(DRAWN)])

    @Phase("interests")
    def learn(self, rows: torch.Tensor, gradient: torch.Tensor) -> None:
        """One step of row-wise Adagrad for some users' queries; every other user's bytes stay as they are.

        Args:
            rows: ``[B]`` int64; the gradients of a user who is there several times are summed.
            gradient: ``[B, K, d_a]`` in the slots of `gather`.
        """
        slots, mask = self._slots(rows)
        place, owner = slots[mask].unique(return_inverse=True)
        each = gradient.to(self.slots.queries)[mask]
        step = each.new_zeros(len(place), each.shape[1]).index_add_(0, owner, each)
        self.slots.moments[place] += step.square().mean(1, keepdim=True)
        rate = self.config.query_learning_rate / (self.slots.moments[place].sqrt() + _EPSILON)
        self.slots.queries[place] -= rate * step

    @Phase("interests")
    def scatter(self, rows: torch.Tensor, interests: Interests) -> None:
        """Writes some users' interests back, and their states; every other user's bytes stay as they are.

        Args:
            rows: ``[B]`` int64, distinct.
            interests: with the counts that the store holds, ``[B, K, d]``; without states, those here stay.
        """
        slots, mask = self._slots(rows)
        for column, new in ((self.values, interests.vectors), (self.slots.states, interests.states)):
            if new is not None:
                column[slots[mask]] = new.detach().to(column)[:, : slots.shape[1]][mask]

    def load(self, rows: torch.Tensor, **columns: torch.Tensor) -> None:
        """Takes interests that were stored elsewhere in the place of what is here.

        Args:
            rows: ``[S]`` int64, ascending, each interest's user.
            columns: of `Slots`, by name, whose memory is the store's from here on; zero where they are not given.
        """
        self._settle(len(rows))
        counts = torch.bincount(rows.to(self.offsets), minlength=len(self.counts))
        self.offsets = torch.cat([self.offsets[:1], counts.cumsum(0)])
        self.slots = Slots(
            *(
                columns[name].to(old) if name in columns else old.new_zeros(len(rows), *old.shape[1:])
                for name, old in self.slots._asdict().items()
            )
        )

    @Phase("interests")
    def expand(self, rows: torch.Tensor, count: int | torch.Tensor, span: int) -> None:
        """Gives users more interests, drawn from N(0, I) by (seed, user, span, slot) (erratum E2).

        Their queries start at what (seed, span, slot) keys, the same for all users: as in ComiRec, whose users share
        them.
        Costs one pass over the store. Interests move inside their memory while it has room.

        Args:
            rows: ``[B]`` int64, distinct.
            count: how many more each of them gets; one number, or ``[B]`` int64.
            span: the span of birth.
        """
        each = count.sum() if isinstance(count, torch.Tensor) else count * len(rows)
        self._settle(len(self.values) + int(each))
        device, counts = self.values.device, self.counts
        more = torch.zeros_like(counts)
        more[rows.to(device)] = count.to(device) if isinstance(count, torch.Tensor) else count
        # New where nobody gains any too: by it all ranks tell alike whether a snapshot is of the same interests.
        self.offsets = self.offsets + pad(more.cumsum(0), (1, 0))
        growing = more.nonzero().squeeze(1)
        if not len(growing):
            return
        before = more.cumsum(0) - more  # new interests of all users before
        owners = growing.repeat_interleave(more[growing])
        slot = counts[owners] + torch.arange(len(owners), device=device) - before[owners]
        place = self.offsets[owners] + slot
        old = torch.ones(len(self.values) + len(place), dtype=torch.bool, device=device).index_fill_(0, place, False)
        source = old.cumsum(0).sub_(1).clamp_(min=0)  # a new one takes that of the one before it for now
        fresh = {"birth_span": span, "moments": 0, "states": 0}
        for name in Slots._fields:  # one after the other, as a block may have to be made anew
            column = moved(getattr(self.slots, name), source)
            if name in fresh:
                column.index_fill_(0, place, fresh[name])
            self.slots = self.slots._replace(**{name: column})
        self._draw(place, owners + self.first_user, span, slot)

    def trim(self, keep: torch.Tensor) -> None:
        """Removes interests; what stays keeps its order and its bytes, and costs one pass over the store.

        Interests move inside their memory, which is kept for those to come.

        Args:
            keep: ``[S]`` bool.
        """
        keep = keep.to(self.values.device)
        kept = keep.nonzero().squeeze(1)
        self.offsets = pad(keep.cumsum(0), (1, 0))[self.offsets]
        self.slots = Slots(*(moved(column, kept) for column in self.slots))

    def snapshot(self) -> StoreSnapshot:
        """What training may change between two spans' ends: which interests there are, and their queries.

        Returns:
            What `restore` takes. Vectors, births and states are not in it: `scatter` writes them only once a span is
            trained, and until then interests come and none goes.
        """
        return StoreSnapshot(self.offsets, self.slots.queries.clone(), self.slots.moments.clone())

    def restore(self, snapshot: StoreSnapshot) -> None:
        """Puts a snapshot back: what came since goes.

        Args:
            snapshot: taken since the last `scatter` or `trim`.
        """
        if self.offsets is not snapshot.offsets:
            self.trim(self._older(snapshot))
        self.offsets = snapshot.offsets.to(self.offsets.device)
        self.slots.queries.copy_(snapshot.queries)
        self.slots.moments.copy_(snapshot.moments)

    def slots_of(self, snapshot: StoreSnapshot) -> Slots:
        """The interests of a snapshot.

        Args:
            snapshot: taken since the last `scatter` or `trim`.

        Returns:
            Its own queries and moments; the other columns are the store's where no interests came since, else copies.
        """
        columns = self.slots
        if self.offsets is not snapshot.offsets:
            older = self._older(snapshot)
            shared = {name: getattr(columns, name)[older] for name in ("values", "birth_span", "states")}
            columns = columns._replace(**shared)
        return columns._replace(queries=snapshot.queries, moments=snapshot.moments)

    def _older(self, snapshot: StoreSnapshot) -> torch.Tensor:
        """Which interests are in a snapshot, ``[S]`` bool: each user's first."""
        end = (self.offsets[:-1] + snapshot.offsets.diff().to(self.offsets)).repeat_interleave(self.counts)
        return torch.arange(len(end), device=end.device) < end

    def _draw(self, place: torch.Tensor, users: torch.Tensor, span: int, slot: torch.Tensor) -> None:
        """First vectors and queries of new interests."""
        dim, query_dim = self.values.shape[1], self.slots.queries.shape[1]
        slots = torch.arange(int(slot.max()) + 1, device=slot.device)
        queries = keyed_random.normal(query_dim, _QUERIES, self.seed, span, slots) / math.sqrt(max(query_dim, 1))
        for at, user, number in zip(*(column.split(DRAWN) for column in (place, users, slot)), strict=True):
            self.values.index_copy_(0, at, keyed_random.normal(dim, _STREAM, self.seed, user, span, number))
            self.slots.queries.index_copy_(0, at, queries.index_select(0, number))

    def _slots(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Places of each user's interests, ``[B, K]``, and which of them exist."""
        rows = rows.to(self.offsets.device)
        first, counts = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        slot = torch.arange(int(counts.max()) if len(rows) else 0, device=rows.device)
        return first.unsqueeze(1) + slot, slot < counts.unsqueeze(1)

    def _settle(self, interests: int) -> None:
        """Leaves the device for good where it has no room for so many interests."""
        free = devices.free_bytes(self.offsets.device)
        width = sum(math.prod(column.shape[1:]) * column.element_size() for column in self.slots)
        if free is None or self.config.fits(interests * width, free + self.bytes):
            return
        logger.info(
            "%d interests take %d MiB; %d MiB of the device are free beside them: they move to the host's memory",
            *(interests, interests * width >> 20, free + self.bytes >> 20),
        )
        self.slots, self.offsets = Slots(*(column.cpu() for column in self.slots)), self.offsets.cpu()
