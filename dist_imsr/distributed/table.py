"""The item table before it is sharded, and TorchRec's planner for it, with or without ranks."""

import math
from typing import NamedTuple

import torch
from torchrec import EmbeddingCollection, EmbeddingConfig, optim
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner import Topology as PlannerTopology
from torchrec.distributed.types import ParameterSharding, ShardingType

from dist_imsr.distributed.library_internals import set_planned_optimizer

TABLE, FEATURE = "catalogue", "item"
BAG = 32  # ids per bag of a request; a thread or a warp of FBGEMM's kernels processes one bag's ids one by one

_OPTIMIZERS = {
    "rowwise_adagrad": optim.RowWiseAdagrad,
    "adagrad": optim.Adagrad,
    "sgd": optim.SGD,
    "adam": optim.Adam,
}
# Ranking and growth rely on rows that are not split by columns.
_SHARDINGS = {
    "row_wise": [ShardingType.ROW_WISE.value],
    "planner": [ShardingType.ROW_WISE.value, ShardingType.TABLE_WISE.value, ShardingType.TABLE_ROW_WISE.value],
}


def least_capacity(items: int, world_size: int) -> int:
    """The fewest rows of a table, over all ranks.

    Args:
        items: how many need a row.
        world_size: the number of ranks.

    Returns:
        So many that every rank holds one: TorchRec's row-wise blocks are ceil(rows / ranks).
    """
    return max(items, world_size**2)


def grown_capacity(headroom: float, capacity: int, items: int, world_size: int) -> int:
    """The rows of a table after it grows to a number of items.

    Args:
        headroom: of the catalogue's section.
        capacity: rows before; 0 for a new table.
        items: how many need a row.
        world_size: the number of ranks.

    Returns:
        Rows over all ranks; ``capacity`` if it is enough.
    """
    if items <= capacity:
        return capacity
    return least_capacity(math.ceil(items * (1 + headroom)), world_size)


class UnshardedTable(NamedTuple):
    """A table that is not sharded yet, with its planner; launch/plan.py uses the same planner without ranks.

    Args:
        table: on the meta device.
        sharder: knows the fused optimizer.
        planner: TorchRec's, for a topology.
    """

    table: EmbeddingCollection
    sharder: EmbeddingCollectionSharder
    planner: EmbeddingShardingPlanner

    @classmethod
    def of(
        cls, sharding: str, optimizer: str, learning_rate: float, capacity: int, dim: int, topology: PlannerTopology
    ) -> "UnshardedTable":
        """Describes the table of all items.

        Args:
            sharding: of the catalogue's section.
            optimizer: fused, of the catalogue's section.
            learning_rate: of the fused optimizer.
            capacity: rows, over all ranks.
            dim: d.
            topology: the ranks and their memory.

        Returns:
            The table, its sharder and its planner.
        """
        config = EmbeddingConfig(name=TABLE, embedding_dim=dim, num_embeddings=capacity, feature_names=[FEATURE])
        table = EmbeddingCollection(tables=[config], device=torch.device("meta"))
        for parameter in table.parameters():
            set_planned_optimizer(parameter, _OPTIMIZERS[optimizer])
        constraints = {TABLE: ParameterConstraints(sharding_types=_SHARDINGS[sharding])}
        return cls(
            table,
            EmbeddingCollectionSharder(fused_params={"learning_rate": learning_rate, "eps": 1e-8}),
            EmbeddingShardingPlanner(topology=topology, constraints=constraints),
        )

    def plan_without_ranks(self) -> ParameterSharding:
        """Plans in this process alone; every rank of a run would get the same plan.

        Returns:
            Shards, sharding type and compute kernel.

        Raises:
            PlannerError: if the table does not fit into the topology's memory.
        """
        return self.planner.plan(self.table, [self.sharder]).plan[""][TABLE]
