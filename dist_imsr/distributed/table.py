"""The item table before it is placed: its rows, and TorchRec's planner over them, with or without ranks."""

import math
from typing import NamedTuple

import torch
from torchrec import EmbeddingCollection, EmbeddingConfig, optim
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner import Topology as PlannerTopology
from torchrec.distributed.types import ParameterSharding, ShardingType

TABLE, FEATURE = "catalogue", "item"
BAG = 32  # ids of a row on their way to the table: a thread or a warp of FBGEMM's kernels takes them one by one

_OPTIMIZERS = {
    "rowwise_adagrad": optim.RowWiseAdagrad,
    "adagrad": optim.Adagrad,
    "sgd": optim.SGD,
    "adam": optim.Adam,
}
# Whole rows in one place: what ranking and growth rely on.
_SHARDINGS = {
    "row_wise": [ShardingType.ROW_WISE.value],
    "planner": [ShardingType.ROW_WISE.value, ShardingType.TABLE_WISE.value, ShardingType.TABLE_ROW_WISE.value],
}


def room(headroom: float, capacity: int, items: int, world_size: int) -> int:
    """The rows of a table once so many items are known.

    Args:
        headroom: of the catalogue's section.
        capacity: the table's rows before; 0 for a new one.
        items: how many must have a row.
        world_size: the number of ranks.

    Returns:
        The rows, over all ranks.
    """
    if items <= capacity:
        return capacity
    # No rank may be left without rows: TorchRec's row-wise blocks are ceil(rows / ranks).
    return max(math.ceil(items * (1 + headroom)), world_size**2)


class UnshardedTable(NamedTuple):
    """A table that is not placed yet, with what places it; launch/plan.py asks the same planner without ranks.

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
        """Authors the table of all items.

        Args:
            sharding: of the catalogue's section.
            optimizer: as `CatalogueConfig.optimizer_on` names it.
            learning_rate: of the fused optimizer.
            capacity: rows, over all ranks.
            dim: d.
            topology: the ranks and their memory.

        Returns:
            The table, its sharder and its planner.
        """
        config = EmbeddingConfig(name=TABLE, embedding_dim=dim, num_embeddings=capacity, feature_names=[FEATURE])
        table = EmbeddingCollection(tables=[config], device=torch.device("meta"))
        for parameter in table.parameters():  # the planner counts the optimizer's state only if it is told so
            parameter._optimizer_classes, parameter._optimizer_kwargs = [_OPTIMIZERS[optimizer]], [{}]
        constraints = {TABLE: ParameterConstraints(sharding_types=_SHARDINGS[sharding])}
        return cls(
            table,
            EmbeddingCollectionSharder(fused_params={"learning_rate": learning_rate, "eps": 1e-8}),
            EmbeddingShardingPlanner(topology=topology, constraints=constraints),
        )

    def placed(self) -> ParameterSharding:
        """The planner's answer without ranks, as every one of them would get it.

        Returns:
            Shards, kind of sharding and kernel.

        Raises:
            PlannerError: if the topology's memory does not hold the table.
        """
        return self.planner.plan(self.table, [self.sharder]).plan[""][TABLE]
