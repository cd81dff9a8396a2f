"""All items' embeddings, row-wise over the ranks: a TorchRec table with a fused optimizer that can grow."""

import copy
import gc
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal

import torch
from torchrec import JaggedTensor
from torchrec.distributed.planner import Topology as PlannerTopology

from dist_imsr import devices
from dist_imsr.checks import require
from dist_imsr.distributed import keyed_random
from dist_imsr.distributed.rows import ShardRows, exchange_rows, overlap
from dist_imsr.distributed.sharded_table import LookupRequest, ShardedTable
from dist_imsr.distributed.table import UnshardedTable, grown_capacity, least_capacity
from dist_imsr.distributed.topology import Topology
from dist_imsr.keys import free, later_spans

_STREAM = 0xCA7A
_INIT_ROWS = 4096  # rows drawn at a time, so that the draws stay in the processor's cache


@dataclass
class CatalogueConfig:
    """The table of item embeddings.

    Args:
        optimizer: fused into the backward pass, the same on every device; its rates are those of row-wise Adagrad.
            Adam, which exists on CUDA alone, needs its own.
        learning_rate: of the table in pre-training.
        incremental_learning_rate: of the table in every later span.
        init_scale: new rows are uniform in [-init_scale, init_scale) / sqrt(dim), keyed by (seed, item).
        headroom: spare rows, as a share of the known items when the table is created or grows.
        sharding: ``row_wise``, or the TorchRec planner's choice among shardings that keep rows whole.
        device_memory: MiB of each CUDA device for the rows and their optimizer state, of which the planner leaves 15 %
            free; by default all but what a step, ranking, and a strategy's copies of the table need. Rows that do not
            fit live in host memory with their state. The device then caches a fifth of the rows, or none if a fifth of
            rows and state does not fit either.
    """

    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = "rowwise_adagrad"
    learning_rate: float = 0.03
    incremental_learning_rate: float = field(default=0.03, metadata=later_spans())
    init_scale: float = 1.0
    headroom: float = 0.2
    sharding: Literal["row_wise", "planner"] = field(default="row_wise", metadata=free())
    device_memory: int | None = field(default=None, metadata=free())

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "catalogue.learning_rate", self.learning_rate, "above 0")
        rate = self.incremental_learning_rate
        require(rate > 0, "catalogue.incremental_learning_rate", rate, "above 0")
        require(self.init_scale >= 0, "catalogue.init_scale", self.init_scale, "at least 0")
        require(self.headroom >= 0, "catalogue.headroom", self.headroom, "at least 0")
        least = self.device_memory is None or self.device_memory >= 1
        require(least, "catalogue.device_memory", self.device_memory, "at least 1 MiB")

    def check_device(self, device: torch.device) -> None:
        """Refuses an optimizer that a device does not have.

        Args:
            device: of the table.

        Raises:
            ValueError: for fused Adam on CPU.
        """
        if device.type == "cpu" and self.optimizer == "adam":
            raise ValueError("catalogue.optimizer: fused Adam does not exist on CPU; use rowwise_adagrad")

    def planner_memory(self, device: int | None, alongside: int = 0, copies: int = 0) -> int | None:
        """The device memory that the planner may use.

        Args:
            device: bytes of the device; None for the host.
            alongside: bytes that the table and its copies must leave free: an estimate for the largest batch, so an
                eighth of the device is theirs in any case.
            copies: number of frozen copies, which get as much as the table.

        Returns:
            Bytes; None for the host.
        """
        if device is None:
            return None
        available = max(device - alongside, device // 8) // (1 + copies)
        return available if self.device_memory is None else min(available, self.device_memory << 20)


class Catalogue:
    """The sharded table; every method is collective, the properties cost nothing.

    Args:
        config: the catalogue's section.
        items: the number of known items after each span so far; the table gets the capacity that it would have after
            growing from one to the next.
        dim: d.
        seed: keys the first values of every row.
        topology: this rank's place.
        capacity: rows over all ranks, in the place of what ``items`` and the headroom give; more only if the items or
            the ranks need more.
        extra: number of further columns of a row, which are zero at first.
        alongside: bytes of the device that the planner must leave free.
        copies: number of frozen copies that the planner must leave memory for.

    Raises:
        ValueError: for fused Adam on CPU.
    """

    def __init__(
        self,
        config: CatalogueConfig,
        items: Sequence[int],
        dim: int,
        seed: int,
        topology: Topology,
        capacity: int | None = None,
        extra: int = 0,
        alongside: int = 0,
        copies: int = 0,
    ) -> None:
        self.config, self.dim, self.seed, self.topology = config, dim, seed, topology
        self.width = dim + extra
        self._planner_memory = config.planner_memory(devices.memory_bytes(topology.device), alongside, copies)
        config.check_device(topology.device)
        self.optimizer: str = config.optimizer
        self.learning_rate = config.learning_rate
        self.items = items[-1]
        self.steps = 0
        """The number of updates that the fused optimizer has made."""
        if capacity is None:
            capacity = reduce(self._grown_capacity, items, 0)
        self._table = self._sharded(max(capacity, least_capacity(self.items, topology.world_size)))
        self._prefetched: tuple[tuple[JaggedTensor, ...], LookupRequest] | None = None
        self._copies: list[weakref.ref[Catalogue]] = []
        self._initialize_rows(0)

    @property
    def capacity(self) -> int:
        """The rows of the table, over all ranks."""
        return self._table.capacity

    @property
    def rows(self) -> range:
        """The items whose rows this rank holds."""
        return self._table.rows

    @property
    def shards(self) -> int:
        """The number of ranks that hold rows."""
        return sum(map(bool, self._table.bounds))

    @property
    def kernel(self) -> str:
        """TorchRec's compute kernel, as in `ShardedTable`."""
        return self._table.compute_kernel

    @property
    def in_host_memory(self) -> bool:
        """Whether rows are in host memory, with or without a cache on the device, which reads them over the bus."""
        return self.kernel != "fused"

    def flushed_weight(self) -> torch.Tensor:
        """This rank's rows, as in `ShardedTable.flushed_weight`: cached rows are written back first."""
        return self._table.flushed_weight()

    def flushed_state(self) -> dict[str, ShardRows]:
        """Everything of this rank's known items that training changes; cached rows are written back first.

        Returns:
            Live rows of the weight and of the optimizer's state, by name.
        """
        first, known = self.rows.start, overlap(self.rows, range(self.items))
        state = self._table.flushed_state().items()
        return {name: ShardRows(values[:known], first, self.items) for name, values in state}

    def start_lookup(self, *sequences: JaggedTensor) -> None:
        """Starts a later `lookup` with gradient, in the background: sends the numbers of its ids to their owners.

        Args:
            sequences: the very same objects that `lookup` will get, on this rank's device.
        """
        with devices.prefetch_stream(self.topology.device):
            self._prefetched = sequences, self._table.start_lookup(_concatenated(sequences))

    def send_ids(self) -> None:
        """Sends the ids of the lookup that was started to the owners of their rows, in the background."""
        if self._prefetched is not None:
            with devices.prefetch_stream(self.topology.device):
                self._prefetched[1].send()

    def lookup(self, *sequences: JaggedTensor) -> list[torch.Tensor]:
        """Fetches embeddings from their owners, in one exchange for all sequences.

        Args:
            sequences: of item ids, int64 values.

        Returns:
            For each argument ``[sum of its lengths, width]`` float32. Backward updates the rows, once.
        """
        if torch.is_grad_enabled():
            request = self._take_prefetched(sequences) or self._table.start_lookup(_concatenated(sequences))
            self._table.set_update_count(self.steps)
            self.steps += 1
            embeddings = self._table.finish_lookup(request)
        else:  # sends each distinct item once; with a gradient, duplicates would have to be summed first
            distinct, position = _concatenated(sequences).unique(return_inverse=True)
            embeddings = self._table.finish_lookup(self._table.start_lookup(distinct)).index_select(0, position)
        return list(embeddings.split([len(sequence.values()) for sequence in sequences]))

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the fused optimizer's step size.

        Args:
            learning_rate: from the next backward pass on.
        """
        self.learning_rate = learning_rate
        self._table.set_learning_rate(learning_rate)

    def own_items(self, items: range) -> range:
        """The part of a range of items whose rows this rank holds."""
        return range(
            max(items.start, self.rows.start), max(items.start, self.rows.start, min(items.stop, self.rows.stop))
        )

    def set_column(self, column: int, items: range, values: torch.Tensor) -> None:
        """Sets a number of consecutive rows of this rank; not collective.

        Args:
            column: d for the first of the extra columns.
            items: as `own_items` returns them.
            values: ``[len(items)]``.
        """
        place = slice(items.start - self.rows.start, items.stop - self.rows.start)
        weight = self.flushed_weight()
        weight[place, column] = values.to(weight)

    def grow(self, items: int) -> bool:
        """Makes room for more items, between spans; old rows and their optimizer state stay bit-identical.

        The old rows of a device wait in host memory. Frozen copies of this table grow as well.

        Args:
            items: the number of items that need a row.

        Returns:
            Whether the table had to grow.
        """
        capacity = self._grown_capacity(self.capacity, items)
        grows = capacity > self.capacity
        if grows:
            old_state = {name: rows.on_host() for name, rows in self.flushed_state().items()}
            devices.synchronize(self.topology.device)  # else the memory of the old rows could not be used again yet
            old_bounds = [range(rows.start, min(rows.stop, self.items)) for rows in self._table.bounds]
            del self._table  # a device may have no memory for both
            gc.collect()  # TorchRec's modules refer to each other
            self._table = self._sharded(capacity)
            for name, rows in self.flushed_state().items():
                exchange_rows(old_state[name].values, old_bounds, rows.values, self._table.bounds, self.topology.rank)
            del old_state  # before the frozen copies make one of their own
            self._initialize_rows(self.items)
        self.items = max(items, self.items)
        for frozen in self._live_copies():
            frozen.grow(items)
        return grows

    def frozen_copy(self) -> "Catalogue":
        """Copies this rank's rows into a table of the same placement that is not trained.

        Returns:
            The copy, without optimizer state; it grows whenever this table does.

        Raises:
            ValueError: if the planner places it on other ranks.
        """
        frozen = copy.copy(self)
        frozen.optimizer = "sgd"
        frozen._prefetched, frozen._copies = None, []
        frozen._table = frozen._sharded(self.capacity)
        if frozen._table.bounds != self._table.bounds:
            raise ValueError("catalogue.sharding: the planner puts a copy of the table on other ranks; use row_wise")
        frozen.flushed_weight().copy_(self.flushed_weight())
        self._copies.append(weakref.ref(frozen))
        return frozen

    def _live_copies(self) -> "list[Catalogue]":
        """Copies that exist on every rank: ranks may collect garbage at different times, and growth is collective."""
        copies = [reference() for reference in self._copies]
        if copies:
            alive = self.topology.sum(torch.tensor([frozen is not None for frozen in copies], dtype=torch.int64))
            everywhere = (alive == self.topology.world_size).tolist()
            copies = [frozen for frozen, kept in zip(copies, everywhere, strict=True) if kept]
            self._copies = [reference for reference, kept in zip(self._copies, everywhere, strict=True) if kept]
        return [frozen for frozen in copies if frozen is not None]

    def _take_prefetched(self, sequences: tuple[JaggedTensor, ...]) -> LookupRequest | None:
        """The request of `start_lookup`, if it was for these sequences."""
        if self._prefetched is None:
            return None
        prefetched, request = self._prefetched
        if [*map(id, prefetched)] != [*map(id, sequences)]:
            return None
        self._prefetched = None
        self._table.wait_on_prefetch_stream(request)
        return request

    def _grown_capacity(self, capacity: int, items: int) -> int:
        return grown_capacity(self.config.headroom, capacity, items, self.topology.world_size)

    def _sharded(self, capacity: int) -> ShardedTable:
        topology = self.topology
        planner_topology = PlannerTopology(
            topology.world_size,
            topology.device.type,
            local_world_size=topology.local_world_size,
            hbm_cap=self._planner_memory,
        )
        unsharded = UnshardedTable.of(
            sharding=self.config.sharding,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            capacity=capacity,
            dim=self.width,
            topology=planner_topology,
        )
        return ShardedTable(unsharded, topology)

    def _initialize_rows(self, first: int) -> None:
        """Draws this rank's rows from item ``first`` on, keyed by (seed, item)."""
        rows, weight, scale = self.rows, self.flushed_weight(), self.config.init_scale / math.sqrt(self.dim)
        for start in range(max(first, rows.start), rows.stop, _INIT_ROWS):
            stop = min(start + _INIT_ROWS, rows.stop)
            items = torch.arange(start, stop, device=self.topology.device)
            drawn = keyed_random.uniform(self.dim, _STREAM, self.seed, items)
            part = weight[start - rows.start : stop - rows.start]
            part.zero_()  # TorchRec draws values of its own
            # A slice: to write by index into some columns copies the whole table on CUDA, in a fixed order of sums.
            part[:, : self.dim] = ((2 * drawn - 1) * scale).float()


def _concatenated(sequences: tuple[JaggedTensor, ...]) -> torch.Tensor:
    return torch.cat([sequence.values() for sequence in sequences])
