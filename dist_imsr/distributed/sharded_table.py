"""The item table after TorchRec has sharded it: placement, this rank's rows, and lookups."""

import torch
import torch.distributed as dist
from torchrec import KeyedJaggedTensor
from torchrec.distributed.embedding import EmbeddingCollectionContext
from torchrec.distributed.embedding_types import KJTList
from torchrec.distributed.types import Awaitable, ShardingEnv

from dist_imsr import devices
from dist_imsr.distributed.library_internals import ShardedTensor, fused_kernels, set_update_count, update_rows_as_sums
from dist_imsr.distributed.table import BAG, FEATURE, TABLE, UnshardedTable
from dist_imsr.distributed.topology import Topology
from dist_imsr.phases import Phase, clock


class LookupRequest:
    """Ids on their way to the ranks that hold their rows: first their numbers, then the ids themselves.

    Args:
        context: of TorchRec, for all steps of one lookup.
        numbers: the exchange of the numbers of ids, which becomes that of the ids.
    """

    def __init__(self, context: EmbeddingCollectionContext, numbers: Awaitable[Awaitable[KJTList]]) -> None:
        self.context = context
        self._numbers: Awaitable[Awaitable[KJTList]] | None = numbers
        self._ids: Awaitable[KJTList] | None = None
        self._received: KJTList | None = None

    def send(self) -> None:
        """Sends the ids, once the numbers of all ranks have arrived; collective."""
        if self._numbers is not None:
            with Phase("all-to-all"):
                self._ids, self._numbers = self._numbers.wait(), None  # what has been sent need not be kept

    def receive(self) -> KJTList:
        """The ids whose rows this rank holds; collective."""
        self.send()
        if self._ids is not None:
            with Phase("all-to-all"):
                self._received, self._ids = self._ids.wait(), None
        assert self._received is not None
        return self._received


class ShardedTable:
    """A table whose capacity and placement do not change; the constructor and lookups are collective.

    Args:
        unsharded: the table and its planner.
        topology: this rank's place.

    Attributes:
        compute_kernel: TorchRec's name for where rows live: ``fused`` on the ranks' devices, ``fused_uvm`` in host
            memory, ``fused_uvm_caching`` in host memory behind a cache on the device.
        bounds: the rows of every rank.
        rows: the rows of this rank.
        capacity: the rows of all ranks.
        kernels: FBGEMM's modules that hold this rank's rows.
    """

    def __init__(self, unsharded: UnshardedTable, topology: Topology) -> None:
        world = dist.group.WORLD
        plan = unsharded.planner.collective_plan(unsharded.table, [unsharded.sharder], world).plan[""]
        environment = ShardingEnv.from_process_group(world)
        self._module = unsharded.sharder.shard(unsharded.table, plan, environment, topology.device)
        self._device = topology.device
        self.kernels = fused_kernels(self._module)
        if topology.device.type == "cpu":
            for kernel in self.kernels:
                update_rows_as_sums(kernel)
        placement = self._module.module_sharding_plan[TABLE]
        self.compute_kernel: str = placement.compute_kernel
        self.bounds = [range(0)] * topology.world_size
        for shard in placement.sharding_spec.shards:
            first = shard.shard_offsets[0]
            self.bounds[shard.placement.rank()] = range(first, first + shard.shard_sizes[0])
        self.rows = self.bounds[topology.rank]
        self.capacity = sum(map(len, self.bounds))
        self._weight = self._local(self._module.state_dict()[f"embeddings.{TABLE}.weight"])

    def flushed_weight(self) -> torch.Tensor:
        """Writes cached rows back to the table and empties the cache.

        Returns:
            This rank's rows, ``[len(rows), d]`` float32, not a copy. Writes to it before the next lookup write to the
            table.
        """
        devices.wait_for_copies(self._device)
        for kernel in self.kernels:
            kernel.flush()
            kernel.reset_cache_states()  # older cached rows must not overwrite what the caller writes
        return self._weight

    def flushed_state(self) -> dict[str, torch.Tensor]:
        """Writes cached rows back to the table and empties the cache.

        Returns:
            This rank's rows of the weight and of the optimizer's state by name, not copies; the optimizer's step count
            is not among them.
        """
        parameters = self._module.fused_optimizer.state_dict()["state"].values()
        moments = {
            name.split(".")[-1]: self._local(value)
            for parameter in parameters
            for name, value in parameter.items()
            if isinstance(value, ShardedTensor)
        }
        return {"weight": self.flushed_weight()} | moments

    def set_learning_rate(self, learning_rate: float) -> None:
        """Sets the fused optimizer's step size.

        Args:
            learning_rate: from the next backward pass on.
        """
        for group in self._module.fused_optimizer.param_groups:
            group["lr"] = learning_rate
        self._module.fused_optimizer.step()  # copies the rate into the kernel; updates happen in backward

    def set_update_count(self, updates: int) -> None:
        """Sets the number of updates by which Adam corrects its bias.

        Args:
            updates: made so far.
        """
        for kernel in self.kernels:
            set_update_count(kernel, updates)

    def start_lookup(self, items: torch.Tensor) -> LookupRequest:
        """Starts to send ids to the ranks that hold their rows: at first, how many.

        Args:
            items: ``[n]`` int64.

        Returns:
            The request for `finish_lookup`.
        """
        bags = max(1, -(-len(items) // BAG))
        lengths = torch.full((bags,), BAG, device=items.device)
        lengths[-1] = len(items) - (bags - 1) * BAG
        features = KeyedJaggedTensor(keys=[FEATURE], values=items, lengths=lengths)
        context = self._module.create_context()
        with Phase("all-to-all"):
            return LookupRequest(context, self._module.input_dist(context, features))

    def wait_on_prefetch_stream(self, request: LookupRequest) -> None:
        """Waits on the prefetch stream, where a request was started, for its ids; the current stream may finish it.

        Args:
            request: of `start_lookup`.
        """
        with devices.prefetch_stream(self._device):
            ids = request.receive()
        devices.wait_for_prefetch(self._device, request.context, ids)

    def finish_lookup(self, request: LookupRequest) -> torch.Tensor:
        """Reads the requested rows and sends them back.

        The steps are those of the table's own forward pass, called one by one so that each has its phase, forward and
        backward.

        Args:
            request: of `start_lookup`.

        Returns:
            ``[n, d]`` float32. Its backward pass updates the rows.
        """
        ids = request.receive()
        with Phase("lookup"):
            found = self._module.compute(request.context, ids)
        with Phase("all-to-all"):
            embeddings: torch.Tensor = self._module.output_dist(request.context, found).wait()[FEATURE].values()
        if embeddings.requires_grad:  # gradients go back to the rows' owners, who then update them
            embeddings.register_hook(lambda _: clock.switch_to("all-to-all"))
            for rows in found:
                rows.register_hook(lambda _: clock.switch_to("optimizer"))
        return embeddings

    def _local(self, sharded: ShardedTensor) -> torch.Tensor:
        shards = sharded.local_shards()
        return shards[0].tensor if shards else torch.empty(0, *sharded.size()[1:], device=self._device)
