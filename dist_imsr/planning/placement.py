"""TorchRec's own planner places the table on a topology that does not exist."""

from functools import lru_cache
from typing import NamedTuple

from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import Topology as PlannerTopology
from torchrec.distributed.planner.types import PlannerError

from dist_imsr.distributed.table import UnshardedTable
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.memory import Shard, row_wise
from dist_imsr.strategies import resources_of
from dist_imsr.strategies.step_memory import bytes_alongside_table


class Placed(NamedTuple):
    """TorchRec's placement of the table.

    Args:
        sharding: the kind.
        kernel: where rows live and how they are updated.
        shards: rows of each shard, and the rank that holds it.
    """

    sharding: str
    kernel: str
    shards: list[tuple[int, int]]

    def rows(self, ranks: int) -> list[int]:
        """How many rows each rank holds; 0 for a rank without a shard."""
        rows = [0] * ranks
        for size, rank in self.shards:
            rows[rank] += size
        return rows


def planner_memory(config: PlanConfig) -> int | None:
    """The device memory that TorchRec's planner may use, as in a run; None for the host."""
    memory = config.device.memory if config.device.device == "cuda" else None
    resources = resources_of(config.strategy)
    alongside = bytes_alongside_table(config, resources, config.ranks)
    return config.catalogue.planner_memory(memory, alongside, resources.tables)


def place(config: PlanConfig, capacity: int) -> Placed:
    """Runs TorchRec's planner as a run would, with its own bandwidths: others could change the placement.

    Args:
        config: of the plan.
        capacity: rows of the table.

    Raises:
        PlannerError: if it finds no placement.
    """
    device, section = config.device, config.catalogue
    topology = PlannerTopology(
        config.ranks,
        device.device,
        local_world_size=config.gpus_per_node,
        hbm_cap=planner_memory(config),
    )
    rate = section.learning_rate
    table = UnshardedTable.of(
        section.sharding, config.catalogue.optimizer, rate, capacity, config.model.row_width, topology
    )
    placed = table.plan_without_ranks()
    assert placed.sharding_spec is not None
    shards = [(shard.shard_sizes[0], shard.placement.rank()) for shard in placed.sharding_spec.shards]
    return Placed(placed.sharding_type, placed.compute_kernel, shards)


def shard_of(config: PlanConfig) -> Shard:
    """Rows of the fullest rank by TorchRec's planner; by row-wise sharding where it finds no placement."""

    @lru_cache
    def rows(capacity: int) -> int:
        try:
            return max(place(config, capacity).rows(config.ranks))
        except PlannerError:
            return row_wise(config.ranks)(capacity)

    return rows


def fused(placed: Placed) -> bool:
    """Whether rows live in device memory, as the memory model assumes, without a cache in front of the host's."""
    return placed.kernel == EmbeddingComputeKernel.FUSED.value
