"""Where TorchRec's own planner puts the table, on a topology that is not there."""

from functools import lru_cache
from typing import NamedTuple

from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import Topology as PlannerTopology
from torchrec.distributed.planner.types import PlannerError

from dist_imsr.distributed.table import UnshardedTable
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.memory import Shard, row_wise


class Placed(NamedTuple):
    """TorchRec's answer for the table at its largest.

    Args:
        sharding: the kind.
        kernel: where rows live and how they are updated.
        shards: rows of each shard, and the rank that holds it.
    """

    sharding: str
    kernel: str
    shards: list[tuple[int, int]]

    def rows(self, ranks: int) -> list[int]:
        """How many rows each rank holds.

        Args:
            ranks: of the world.

        Returns:
            Rows by rank; 0 for one without a shard.
        """
        held = [0] * ranks
        for size, rank in self.shards:
            held[rank] += size
        return held


def place(config: PlanConfig, capacity: int) -> Placed:
    """Asks TorchRec's planner as a run would, on a topology that is not there.

    The bandwidths of the topology are TorchRec's own, as they are in a run: with others the answer could be another.

    Args:
        config: the command's.
        capacity: rows of the table.

    Returns:
        The answer.

    Raises:
        PlannerError: if it finds no place.
    """
    device, section = config.device, config.catalogue
    topology = PlannerTopology(
        config.ranks,
        device.device,
        local_world_size=config.gpus_per_node,
        hbm_cap=section.planner_memory(device.memory if device.device == "cuda" else None),
    )
    rate = section.learning_rate
    authored = UnshardedTable.of(section.sharding, config.optimizer, rate, capacity, config.model.dim, topology)
    placed = authored.plan_without_ranks()
    assert placed.sharding_spec is not None
    shards = [(shard.shard_sizes[0], shard.placement.rank()) for shard in placed.sharding_spec.shards]
    return Placed(placed.sharding_type, placed.compute_kernel, shards)


def shard_of(config: PlanConfig) -> Shard:
    """Rows of the fullest rank as TorchRec's planner places them; in row-wise blocks where it refuses.

    Args:
        config: the command's.

    Returns:
        Rows of a table -> rows of the fullest rank.
    """

    @lru_cache
    def rows(capacity: int) -> int:
        try:
            return max(place(config, capacity).rows(config.ranks))
        except PlannerError:
            return row_wise(config.ranks)(capacity)

    return rows


def fused(placed: Placed) -> bool:
    """Whether rows live in device memory, as the accounts take for granted.

    Args:
        placed: by TorchRec's planner.

    Returns:
        False for kernels that keep rows on the host, be it behind a cache on the device.
    """
    return placed.kernel == EmbeddingComputeKernel.FUSED.value
