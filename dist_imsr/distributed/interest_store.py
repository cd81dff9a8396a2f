"""Every user's interests, on the rank that owns the user's bucket."""

import logging
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.nn.functional import pad

from dist_imsr import devices
from dist_imsr.checks import require
from dist_imsr.data.user_ids import OwnedUsers
from dist_imsr.distributed.columns import move_rows, pad_rows, send_to
from dist_imsr.distributed.slots import DRAWN, Layout, Slots, StoreSnapshot, View, padded_places, sources_around
from dist_imsr.distributed.topology import Topology
from dist_imsr.keys import free
from dist_imsr.model.interests import Interests
from dist_imsr.phases import Phase

logger = logging.getLogger(__name__)


@dataclass
class InterestStoreConfig:
    """Where interests live, and how their queries are trained.

    Args:
        memory: ``device`` or ``host``; ``auto`` is the device's memory as long as interests take at most half of what
            the catalogue leaves free, and then the host's, from which the interests of each step are prefetched.
        query_learning_rate: of ComiRec-SA's queries, under row-wise Adagrad.
    """

    memory: Literal["auto", "device", "host"] = field(default="auto", metadata=free())
    query_learning_rate: float = 0.03

    def __post_init__(self) -> None:
        require(self.query_learning_rate > 0, "store.query_learning_rate", self.query_learning_rate, "above 0")

    def fits(self, needed: int, free: int) -> bool:
        """Whether interests belong on the device.

        Args:
            needed: bytes of the interests.
            free: bytes of the device that nothing else uses.
        """
        return self.memory == "device" or (self.memory == "auto" and 2 * needed <= free)


class InterestStore:
    """Jagged interests of the users that a rank owns; `OwnedUsers` maps them to rows and back.

    Memory and cost follow the number of interests: users without interactions have none, and an offset alone.

    Args:
        config: the store's section.
        owned: the users that this rank owns.
        users_per_bucket: the number of users of each bucket who have a row.
        dim: d, the width of an interest.
        query_dim: d_a, the width of a query; 0 for none.
        seed: keys the first vectors of new interests.
        device: of the columns.
        state_dim: m, the width of a state; 0 for none.
    """

    def __init__(
        self,
        config: InterestStoreConfig,
        owned: OwnedUsers,
        users_per_bucket: int,
        dim: int,
        query_dim: int,
        seed: int,
        device: torch.device,
        state_dim: int = 0,
    ) -> None:
        self.config, self.owned, self.users_per_bucket, self.seed = config, owned, users_per_bucket, seed
        self.slots = Slots.empty(dim, query_dim, state_dim, device)
        self.offsets = torch.zeros(users_per_bucket * len(owned.buckets) + 1, dtype=torch.int64, device=device)
        self._sizes: tuple[torch.Tensor, int, Layout] | None = None

    @classmethod
    def build(
        cls,
        config: InterestStoreConfig,
        n_buckets: int,
        users_per_bucket: int,
        dim: int,
        query_dim: int,
        seed: int,
        topology: Topology,
        state_dim: int = 0,
    ) -> "InterestStore":
        """An empty store for those of the data set's buckets that this rank owns."""
        owned = OwnedUsers(n_buckets, topology.buckets(n_buckets))
        device = torch.device("cpu") if config.memory == "host" else topology.device
        return cls(config, owned, users_per_bucket, dim, query_dim, seed, device, state_dim)

    @property
    def values(self) -> torch.Tensor:
        """The vectors, ``[S, d]``."""
        return self.slots.values

    @property
    def birth_span(self) -> torch.Tensor:
        """The span in which each interest was created, ``[S]`` int16."""
        return self.slots.birth_span

    @property
    def counts(self) -> torch.Tensor:
        """K_u of every row, ``[rows]`` int64."""
        return self.offsets.diff()

    @property
    def owners(self) -> torch.Tensor:
        """The row of each interest's user, ``[S]`` int64."""
        return torch.arange(len(self.counts), device=self.offsets.device).repeat_interleave(self.counts)

    @property
    def bytes(self) -> int:
        """The memory of the columns and the offsets."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.slots, self.offsets))

    def grow(self, users_per_bucket: int) -> None:
        """Adds rows without interests, between spans; the old ones stay where they are.

        Args:
            users_per_bucket: the number of users of each bucket who need a row.
        """
        if users_per_bucket > self.users_per_bucket:  # else the same tensor: `restore` compares identities
            rows = users_per_bucket * len(self.owned.buckets)
            self.offsets = torch.cat([self.offsets, self.offsets[-1:].expand(rows - len(self.counts))])
            self.users_per_bucket = users_per_bucket

    def layout(self, users: torch.Tensor, span: int) -> Layout:
        """How many interests some users have.

        A device is read only if interests were created or removed since the last call, or for another span.

        Args:
            users: ``[B]`` int64, ids, on the host for a call that waits for nothing.
            span: the span at hand.

        Returns:
            The numbers, on the host.
        """
        if self._sizes is None or self._sizes[0] is not self.offsets or self._sizes[1] != span:
            older = pad((self.birth_span < span).cumsum(0), (1, 0))[self.offsets].diff()
            whole = Layout(counts=self.counts.to("cpu", torch.int16), older=older.to("cpu", torch.int16))
            self._sizes = self.offsets, span, whole
        rows, whole = self.owned.rows(users.cpu()), self._sizes[2]
        return Layout(counts=whole.counts[rows].long(), older=whole.older[rows].long())

    @Phase("interests")
    def gather(self, rows: torch.Tensor, device: torch.device | None = None, most: int | None = None) -> Interests:
        """Copies some users' interests to a device, the store's by default.

        Args:
            rows: ``[B]`` int64.
            device: of the copy.
            most: the largest K_u among ``rows``, if the host knows it.

        Returns:
            ``[B, K, d]``, padded to the largest K_u among ``rows``.
        """
        places, mask = padded_places(self.offsets, rows, most)
        return Interests(send_to(pad_rows(self.values, places, mask), device), send_to(mask, device))

    @Phase("interests")
    def view(self, rows: torch.Tensor, span: int, device: torch.device | None = None, most: int | None = None) -> View:
        """As `gather`, with the states and with which interests are older than ``span``."""
        places, mask = padded_places(self.offsets, rows, most)
        values, birth_span, states = (
            pad_rows(column, places, mask) for column in (self.values, self.birth_span, self.slots.states)
        )
        values, mask, existing, states = (
            send_to(tensor, device) for tensor in (values, mask, (birth_span < span) & mask, states)
        )
        return View(Interests(values, mask), existing, states)

    @Phase("interests")
    def queries(self, rows: torch.Tensor, device: torch.device | None = None, most: int | None = None) -> torch.Tensor:
        """As `gather`, for the queries W_u: ``[B, K, d_a]``, zero for padding."""
        return send_to(pad_rows(self.slots.queries, *padded_places(self.offsets, rows, most)), device)

    def created(self, span: int) -> torch.Tensor:
        """The slots of interests created in ``span`` for users who had older ones: ``[n]`` int64, ascending."""
        known = self.counts > 0
        known[known.clone()] = self.birth_span[self.offsets[:-1][known]] < span  # a user's first interest is the oldest
        return (known.repeat_interleave(self.counts).logical_and_(self.birth_span == span)).nonzero().squeeze(1)

    def norms(self, places: torch.Tensor) -> torch.Tensor:
        """The Euclidean norms of the interests in some slots, ``[n]``."""
        return torch.cat([self.values.index_select(0, part).norm(dim=1) for part in places.split(DRAWN)])

    @Phase("interests")
    def update_queries(self, users: torch.Tensor, gradient: torch.Tensor, span: int) -> None:
        """One step of row-wise Adagrad for some users' queries; no other user's bytes change.

        Args:
            users: ``[B]`` int64, ids on the host; gradients of the same user are summed.
            gradient: ``[B, K, d_a]``, padded as in `gather`.
            span: the span at hand.
        """
        devices.wait_for_copies(self.offsets.device)
        gradient, users = gradient.to(self.slots.queries), users.cpu()
        if len(distinct := users.unique()) < len(users):
            place = send_to(torch.searchsorted(distinct, users), gradient.device)
            gradient = gradient.new_zeros(len(distinct), *gradient.shape[1:]).index_add_(0, place, gradient)
            users = distinct
        layout = self.layout(users, span)
        places, real = self._places(users, layout)
        gradients = gradient[:, : layout.most].flatten(0, 1)[real]
        self.slots.update_queries(places, gradients, self.config.query_learning_rate)

    @Phase("interests")
    def scatter(self, users: torch.Tensor, interests: Interests, layout: Layout) -> None:
        """Writes some users' interests and states back; no other user's bytes change.

        Args:
            users: ``[B]`` int64, distinct ids on the host.
            interests: ``[B, K, d]``, as many for each user as in the store; without states, the stored states stay.
            layout: of these users.
        """
        devices.wait_for_copies(self.offsets.device)
        places, real = self._places(users, layout)
        for column, new in ((self.values, interests.vectors), (self.slots.states, interests.states)):
            if new is not None:
                column[places] = new.detach().to(column)[:, : layout.most].flatten(0, 1)[real]

    def load(self, rows: torch.Tensor, **columns: torch.Tensor) -> None:
        """Replaces all interests by others, for example those of a checkpoint.

        Args:
            rows: ``[S]`` int64, ascending, each interest's user.
            columns: of `Slots`, by name; the store uses their memory. Missing columns are zero.
        """
        self._move_to_host_unless_fits(len(rows))
        counts = torch.bincount(rows.to(self.offsets), minlength=len(self.counts))
        self.offsets = torch.cat([self.offsets[:1], counts.cumsum(0)])
        self.slots = self.slots.replaced(len(rows), columns)

    @Phase("interests")
    def expand(
        self, rows: torch.Tensor, count: int | torch.Tensor, span: int, starts: torch.Tensor | None = None
    ) -> None:
        """Creates interests, drawn from N(0, I) by (seed, user, span, slot) (erratum E2).

        Their queries are drawn by (seed, span, slot), the same for all users, as in ComiRec, where users share them.
        The cost is one pass over the store, within its memory if that is large enough.

        Args:
            rows: ``[B]`` int64, distinct.
            count: new interests of each user; one number, or ``[B]`` int64.
            span: of creation.
            starts: ``[B, most, d]``, the vectors of each user's new interests; a drawn one stays where it is zero.
        """
        devices.wait_for_copies(self.offsets.device)
        created = count.sum() if isinstance(count, torch.Tensor) else count * len(rows)
        self._move_to_host_unless_fits(len(self.values) + int(created))
        device, counts = self.values.device, self.counts
        more = torch.zeros_like(counts)
        more[rows.to(device)] = count.to(device) if isinstance(count, torch.Tensor) else count
        # A new tensor even if this rank creates none: `restore` compares identities, and ranks must agree.
        self.offsets = self.offsets + pad(more.cumsum(0), (1, 0))
        growing = more.nonzero().squeeze(1)
        if not len(growing):
            return
        before = more.cumsum(0) - more  # new interests of all users before
        owners = growing.repeat_interleave(more[growing])
        slot = counts[owners] + torch.arange(len(owners), device=device) - before[owners]
        places = self.offsets[owners] + slot
        source = sources_around(places, len(self.values) + len(places))
        initial = {"birth_span": span, "moments": 0, "states": 0}  # vectors and queries are drawn
        for name in Slots._fields:  # one by one, so that at most one column exists twice
            column = move_rows(getattr(self.slots, name), source)
            if name in initial:
                column.index_fill_(0, places, initial[name])
            self.slots = self.slots._replace(**{name: column})
        self.slots.draw(places, self.owned.users(owners), span, slot, self.seed)
        if starts is not None:
            index = torch.zeros_like(counts)
            index[rows.to(device)] = torch.arange(len(rows), device=device)
            given = starts.to(self.values)[index[owners], slot - counts[owners]]
            some = given.any(-1)
            self.values[places[some]] = given[some]

    def trim(self, keep: torch.Tensor) -> None:
        """Removes interests; the others keep their order and their bytes.

        The cost is one pass over the store, within its memory, which stays allocated for later interests.

        Args:
            keep: ``[S]`` bool.
        """
        devices.wait_for_copies(self.offsets.device)
        keep = keep.to(self.values.device)
        self.offsets = pad(keep.cumsum(0), (1, 0))[self.offsets]
        self.slots = self.slots.selected(keep.nonzero().squeeze(1))

    def snapshot(self) -> StoreSnapshot:
        """Copies what training may change before a span ends: which interests exist, and their queries.

        Vectors, spans of creation and states are left out: `scatter` writes them only when a span ends, and until then
        interests are only added.
        """
        return StoreSnapshot(self.offsets, self.slots.queries.clone(), self.slots.moments.clone())

    def restore(self, snapshot: StoreSnapshot) -> None:
        """Restores a snapshot; removes interests created after it.

        Args:
            snapshot: taken after the last `scatter` or `trim`.
        """
        devices.wait_for_copies(self.offsets.device)
        if self.offsets is not snapshot.offsets:
            self.trim(self._in_snapshot(snapshot))
        self.offsets = snapshot.offsets.to(self.offsets.device)
        self.slots.queries.copy_(snapshot.queries)
        self.slots.moments.copy_(snapshot.moments)

    def slots_of(self, snapshot: StoreSnapshot) -> Slots:
        """The interests of a snapshot.

        Args:
            snapshot: taken after the last `scatter` or `trim`.

        Returns:
            The snapshot's queries and moments; the store's other columns, or copies if interests were created since.
        """
        slots = self.slots
        if self.offsets is not snapshot.offsets:
            known = self._in_snapshot(snapshot)
            slots = slots._replace(**{name: getattr(slots, name)[known] for name in ("values", "birth_span", "states")})
        return slots._replace(queries=snapshot.queries, moments=snapshot.moments)

    def _places(self, users: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        """The slots of some users' interests, and their places in ``[B * K]``; no size is read from a device."""
        device = self.offsets.device
        real, rows = (send_to(one, device) for one in (layout.real(), self.owned.rows(users.cpu())))
        places, _ = padded_places(self.offsets, rows, layout.most)
        return places.flatten()[real], real

    def _in_snapshot(self, snapshot: StoreSnapshot) -> torch.Tensor:
        """The interests in a snapshot, ``[S]`` bool: the first of each user."""
        end = (self.offsets[:-1] + snapshot.offsets.diff().to(self.offsets)).repeat_interleave(self.counts)
        return torch.arange(len(end), device=end.device) < end

    def _move_to_host_unless_fits(self, interests: int) -> None:
        """Leaves the device for good if so many interests do not fit there."""
        free = devices.free_bytes(self.offsets.device)
        needed = interests * self.slots.bytes_per_interest
        if free is None or self.config.fits(needed, free + self.bytes):
            return
        logger.info(
            "%d interests take %d MiB, and the device has %d MiB free for them: they move to the host's memory",
            interests,
            needed >> 20,
            free + self.bytes >> 20,
        )
        self.slots, self.offsets = Slots(*(column.cpu() for column in self.slots)), self.offsets.cpu()
