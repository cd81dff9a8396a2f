"""All items' embeddings, row-wise over the ranks: a TorchRec table with a fused optimizer that can grow."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec import JaggedTensor, KeyedJaggedTensor
from torchrec.distributed.embedding import EmbeddingCollectionContext, ShardedEmbeddingCollection
from torchrec.distributed.embedding_types import KJTList
from torchrec.distributed.planner import Topology as PlannerTopology
from torchrec.distributed.types import Awaitable, NoWait, ShardingEnv

from dist_imsr import devices
from dist_imsr.checks import require
from dist_imsr.distributed import keyed_random
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.distributed.table import BAG, FEATURE, TABLE, UnshardedTable, room
from dist_imsr.distributed.topology import Topology
from dist_imsr.keys import free, later_spans
from dist_imsr.phases import Phase, clock

_STREAM = 0xCA7A
_INIT_ROWS = 4096  # rows drawn at a time, so that the draws stay in the processor's cache


@dataclass
class CatalogueConfig:
    """The table of item embeddings.

    Args:
        optimizer: fused into the backward pass; ``auto`` is row-wise Adagrad on CPU and Adam on CUDA (fused Adam does
            not exist on CPU).
        learning_rate: of the table in pre-training.
        incremental_learning_rate: of the table in every later span.
        init_scale: new rows are uniform in [-init_scale, init_scale) / sqrt(dim), keyed by (seed, item).
        headroom: spare rows, as a share of the items known when the table is made or grown.
        sharding: ``row_wise``, or the TorchRec planner's choice among shardings that keep rows whole.
        device_memory: MiB of each CUDA device into which the planner fits the rows and their optimizer state, 15 % of
            them spare; all that it has by default. Rows that do not fit live in host memory, their state beside them,
            and the device holds a fifth of them at most.
    """

    optimizer: Literal["auto", "rowwise_adagrad", "adagrad", "sgd", "adam"] = "auto"
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

    def optimizer_on(self, device: torch.device) -> str:
        """The optimizer that a device gets.

        Args:
            device: where the table will live.

        Returns:
            A name that is not ``auto``.

        Raises:
            ValueError: for fused Adam on CPU.
        """
        cpu = device.type == "cpu"
        if cpu and self.optimizer == "adam":
            raise ValueError("catalogue.optimizer: fused Adam does not exist on CPU; take rowwise_adagrad")
        if self.optimizer == "auto":
            return "rowwise_adagrad" if cpu else "adam"
        return self.optimizer

    def memory_of(self, device: int | None) -> int | None:
        """What the planner is told that a device has.

        Args:
            device: bytes that it has; None for the host.

        Returns:
            Bytes; None for the host.
        """
        if device is None or self.device_memory is None:
            return device
        return min(device, self.device_memory << 20)


class _Request(NamedTuple):
    """Ids on their way to their owners, who send back their rows."""

    context: EmbeddingCollectionContext
    items: Awaitable[KJTList]


class Catalogue:
    """The sharded table; every method but the properties is collective.

    Args:
        config: the catalogue's section.
        items: how many items are known, the last of the numbers; the table gets the room that it would have had it
            grown from one to the next.
        dim: d.
        seed: keys the first values of every row.
        topology: this rank's place.

    Raises:
        ValueError: for fused Adam on CPU.
    """

    def __init__(self, config: CatalogueConfig, items: Sequence[int], dim: int, seed: int, topology: Topology) -> None:
        self.config, self.dim, self.seed, self.topology = config, dim, seed, topology
        self.optimizer, self.learning_rate = config.optimizer_on(topology.device), config.learning_rate
        self.items = items[-1]
        self.steps = 0
        """How many updates the fused optimizer has made."""
        self.table = self._shard(reduce(self._room, items, 0))
        self._prefetched: tuple[tuple[JaggedTensor, ...], _Request] | None = None
        self._draw(0)

    @property
    def capacity(self) -> int:
        """The rows of the table, over all ranks."""
        return int(self._sharded_weight().size(0))

    @property
    def rows(self) -> range:
        """The items whose rows this rank holds."""
        return self._bounds()[self.topology.rank]

    @property
    def shards(self) -> int:
        """How many ranks hold rows."""
        return sum(map(bool, self._bounds()))

    @property
    def kernel(self) -> str:
        """TorchRec's name of where rows live: ``fused`` is on their ranks' devices, ``fused_uvm`` means the host."""
        return self.table.module_sharding_plan[TABLE].compute_kernel

    @property
    def weight(self) -> torch.Tensor:
        """This rank's rows, ``[len(rows), d]`` float32; writing to it before the next lookup writes to the table."""
        return self._local(self._sharded_weight())

    @property
    def state(self) -> dict[str, ShardRows]:
        """This rank's part of all that training changes, row by row of known items: weight and optimizer's state."""
        moments = self.table.fused_optimizer.state_dict()["state"].values()
        sharded = {"weight": self._sharded_weight()} | {
            name.split(".")[-1]: value
            for parameter in moments
            for name, value in parameter.items()
            if isinstance(value, ShardedTensor)  # a count of steps is no row
        }
        first, known = self.rows.start, _overlap(self.rows, range(self.items))
        return {name: ShardRows(self._local(value)[:known], first, self.items) for name, value in sharded.items()}

    def start_lookup(self, *sequences: JaggedTensor) -> None:
        """Begins a later `lookup` with a gradient: its ids travel to their owners beside what is done meanwhile.

        Args:
            sequences: that it will be of, the very same objects, as they came from `Steps.on`.
        """
        with devices.prefetch_stream(self.topology.device):
            self._prefetched = sequences, self._ask(_values(sequences))

    def lookup(self, *sequences: JaggedTensor) -> list[torch.Tensor]:
        """Fetches embeddings from their owners, in one exchange for all sequences.

        Args:
            sequences: of item ids, int64 values.

        Returns:
            For each argument ``[sum of its lengths, d]`` float32. Backward updates the rows, once.
        """
        if torch.is_grad_enabled():
            embeddings = self._fetch(self._asked(sequences) or self._ask(_values(sequences)))
        else:  # an item of many users travels once; a gradient would have to be summed for it first
            distinct, place = _values(sequences).unique(return_inverse=True)
            embeddings = self._fetch(self._ask(distinct)).index_select(0, place)
        return list(embeddings.split([len(sequence.values()) for sequence in sequences]))

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the fused optimizer's step size.

        Args:
            learning_rate: from the next backward pass on.
        """
        self.learning_rate = learning_rate
        for group in self.table.fused_optimizer.param_groups:
            group["lr"] = learning_rate
        self.table.fused_optimizer.step()  # hands the rate to the kernel; the update itself is in backward

    def grow(self, items: int) -> bool:
        """Makes room for more items, between spans; old rows and their optimizer state stay bit-identical.

        Args:
            items: how many items must have a row.

        Returns:
            Whether the table had to grow.
        """
        room = self._room(self.capacity, items)
        grows = room > self.capacity
        if grows:
            old_state, old_bounds = self.state, self._bounds()
            self.table = self._shard(room)
            for name, rows in self.state.items():
                self._move(old_state[name].values, old_bounds, rows.values)
            self._draw(self.items)
        self.items = max(items, self.items)
        return grows

    def frozen_copy(self) -> "Catalogue":
        """Another table with the same rows on the same ranks, their values copied, that is not trained.

        Returns:
            The copy; it has no optimizer state, and stays beside this one as long as both grow alike.

        Raises:
            ValueError: if the planner would put it elsewhere.
        """
        twin = copy.copy(self)
        twin.optimizer = "sgd"
        twin.table = twin._shard(self.capacity)
        if twin._bounds() != self._bounds():
            raise ValueError("catalogue.sharding: the planner puts a copy of the table elsewhere; take row_wise")
        twin.weight.copy_(self.weight)
        return twin

    def _asked(self, sequences: tuple[JaggedTensor, ...]) -> _Request | None:
        """What `ask` began, where it was for these sequences."""
        if self._prefetched is None or [*map(id, self._prefetched[0])] != [*map(id, sequences)]:
            return None
        ((_, (context, coming)), self._prefetched), device = (self._prefetched, None), self.topology.device
        with devices.prefetch_stream(device), Phase("all-to-all"):
            items = coming.wait()
        devices.wait_for_prefetch(device, context, items)
        return _Request(context, NoWait(items))

    def _ask(self, items: torch.Tensor) -> _Request:
        """The first step of the table's own forward pass."""
        bags = max(1, -(-len(items) // BAG))
        lengths = torch.full((bags,), BAG, device=items.device)
        lengths[-1] = len(items) - (bags - 1) * BAG
        wanted = KeyedJaggedTensor(keys=[FEATURE], values=items, lengths=lengths)
        context = self.table.create_context()
        with Phase("all-to-all"):
            return _Request(context, self.table.input_dist(context, wanted).wait())

    def _fetch(self, request: _Request) -> torch.Tensor:
        """The other steps of the table's own forward pass; apart they are phases, forward and backward."""
        table, (context, coming) = self.table, request
        with Phase("all-to-all"):
            asked = coming.wait()
        if torch.is_grad_enabled():
            # FBGEMM's Adam counts every forward pass as an update, those without a gradient too, and goes by the count
            # on the host, which its own setter leaves as it is.
            for kernel in _kernels(table):
                kernel.iter.fill_(self.steps)
                kernel.iter_cpu.fill_(self.steps)
            self.steps += 1
        with Phase("lookup"):
            found = table.compute(context, asked)
        with Phase("all-to-all"):
            embeddings = table.output_dist(context, found).wait()[FEATURE].values()
        if embeddings.requires_grad:  # backward comes here last: back to the owners, who update their rows
            embeddings.register_hook(lambda _: clock.turn("all-to-all"))
            for rows in found:
                rows.register_hook(lambda _: clock.turn("optimizer"))
        return embeddings

    def _room(self, capacity: int, items: int) -> int:
        """The rows of a table of some capacity once so many items are known."""
        return room(self.config.headroom, capacity, items, self.topology.world_size)

    def _shard(self, capacity: int) -> ShardedEmbeddingCollection:
        topology, memory = self.topology, self.config.memory_of(devices.memory_bytes(self.topology.device))
        authored = UnshardedTable.of(
            *(self.config.sharding, self.optimizer, self.learning_rate, capacity, self.dim),
            PlannerTopology(
                topology.world_size, topology.device.type, local_world_size=topology.local_world_size, hbm_cap=memory
            ),
        )
        world = dist.group.WORLD
        plan = authored.planner.collective_plan(authored.table, [authored.sharder], world)
        env = ShardingEnv.from_process_group(world)
        return authored.sharder.shard(authored.table, plan.plan[""], env, topology.device)

    def _draw(self, first: int) -> None:
        """Gives the rows from item ``first`` on the values that (seed, item) key, whoever holds them."""
        rows, weight, scale = self.rows, self.weight, self.config.init_scale / math.sqrt(self.dim)
        for start in range(max(first, rows.start), rows.stop, _INIT_ROWS):
            items = torch.arange(start, min(start + _INIT_ROWS, rows.stop), device=self.topology.device)
            drawn = keyed_random.uniform(self.dim, _STREAM, self.seed, items)
            weight[items - rows.start] = ((2 * drawn - 1) * scale).float()

    def _move(self, old: torch.Tensor, old_bounds: list[range], new: torch.Tensor) -> None:
        """Sends old rows to the ranks that hold them now; no rank ever sees more than its own shard."""
        mine, me = self._bounds(), self.topology.rank
        old_bounds = [range(held.start, min(held.stop, self.items)) for held in old_bounds]
        send = [_overlap(old_bounds[me], held) for held in mine]
        receive = [_overlap(held, mine[me]) for held in old_bounds]
        arrived = new.new_empty(sum(receive), *new.shape[1:])
        dist.all_to_all_single(arrived, old[: sum(send)].contiguous(), receive, send)
        new[: len(arrived)] = arrived

    def _sharded_weight(self) -> ShardedTensor:
        weight = self.table.state_dict()[f"embeddings.{TABLE}.weight"]  # where rows are cached, they have come home
        for kernel in _kernels(self.table):
            kernel.reset_cache_states()  # who is handed rows may write to them: no older ones may come home after that
        return weight

    def _bounds(self) -> list[range]:
        """The rows of every rank."""
        bounds = [range(0)] * self.topology.world_size
        for shard in self._sharded_weight().metadata().shards_metadata:
            first = shard.shard_offsets[0]
            bounds[shard.placement.rank()] = range(first, first + shard.shard_sizes[0])  # type: ignore[index, union-attr]
        return bounds

    def _local(self, sharded: ShardedTensor) -> torch.Tensor:
        shards = sharded.local_shards()
        return shards[0].tensor if shards else torch.empty(0, *sharded.size()[1:], device=self.topology.device)


def _values(sequences: tuple[JaggedTensor, ...]) -> torch.Tensor:
    return torch.cat([sequence.values() for sequence in sequences])


def _overlap(first: range, second: range) -> int:
    return max(0, min(first.stop, second.stop) - max(first.start, second.start))


def _kernels(table: ShardedEmbeddingCollection) -> list[SplitTableBatchedEmbeddingBagsCodegen]:
    lookups = (module for lookup in table._lookups for module in lookup.modules())  # which the table does not register
    return [module for module in lookups if isinstance(module, SplitTableBatchedEmbeddingBagsCodegen)]
