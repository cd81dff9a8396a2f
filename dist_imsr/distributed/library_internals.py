"""Private names of torch, TorchRec, FBGEMM and DeepSpeed that have no public counterpart, in one place.

Each function has a contract test, which fails when a new version of the library moves the name.
"""

from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.embedding import ShardedEmbeddingCollection

__all__ = [
    "ShardedTensor",
    "disable_shared_memory_kernel",
    "fake_store",
    "fused_kernels",
    "set_planned_optimizer",
    "set_timeout",
    "set_update_count",
    "share_world_group",
    "update_rows_as_sums",
]


def fused_kernels(table: ShardedEmbeddingCollection) -> list[SplitTableBatchedEmbeddingBagsCodegen]:
    """Finds FBGEMM's modules inside a sharded table.

    TorchRec keeps a table's lookups in ``_lookups`` without registering them as submodules, so that ``modules()`` does
    not find them.

    Args:
        table: after sharding.

    Returns:
        One for each shard that this rank holds.
    """
    submodules = (module for lookup in table._lookups for module in lookup.modules())
    return [module for module in submodules if isinstance(module, SplitTableBatchedEmbeddingBagsCodegen)]


def set_update_count(kernel: SplitTableBatchedEmbeddingBagsCodegen, updates: int) -> None:
    """Sets the number of updates by which FBGEMM's Adam corrects its bias.

    FBGEMM counts every forward pass as an update, also those without a gradient. It reads ``iter_cpu``, which its
    public ``set_optimizer_step`` does not change.

    Args:
        kernel: of a sharded table.
        updates: made so far.
    """
    kernel.iter.fill_(updates)
    kernel.iter_cpu.fill_(updates)


def update_rows_as_sums(kernel: SplitTableBatchedEmbeddingBagsCodegen) -> None:
    """Makes FBGEMM's kernel for the CPU treat each row as a sum of one row.

    Its update of rows that are not summed allocates memory for each of them, and takes 15 times as long.

    Args:
        kernel: of a sharded table, whose lookups sum no rows.
    """

    def each_row(_: torch.nn.Module, arguments: tuple[()], options: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        indices = options["indices"]
        return arguments, options | {"offsets": torch.arange(len(indices) + 1, device=indices.device)}

    kernel.pooling_mode = PoolingMode.SUM
    kernel.register_forward_pre_hook(each_row, with_kwargs=True)


def set_planned_optimizer(parameter: torch.nn.Parameter, optimizer: type[torch.optim.Optimizer]) -> None:
    """Makes TorchRec's planner count the memory of a fused optimizer's state.

    The planner reads these attributes. The public ``apply_optimizer_in_backward`` sets them as well, but builds an
    optimizer, which a parameter on the meta device does not need.

    Args:
        parameter: of an unsharded table.
        optimizer: of ``torchrec.optim``.
    """
    parameter._optimizer_classes = [optimizer]  # type: ignore[attr-defined]
    parameter._optimizer_kwargs = [{}]  # type: ignore[attr-defined]


def share_world_group() -> None:
    """Makes DeepSpeed use the process group of all ranks that exists.

    Otherwise DeepSpeed clones it, with its own timeout of half an hour instead of the one configured.
    """
    deepspeed.utils.groups._WORLD_GROUP = dist.group.WORLD


def set_timeout(seconds: float) -> None:
    """Sets the timeout of all later collectives of the group of all ranks, for which torch has no public name.

    A group that TORCH_DISTRIBUTED_DEBUG=DETAIL wraps keeps its own, with a warning.

    Args:
        seconds: from the next collective on.
    """
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))


def disable_shared_memory_kernel() -> None:
    """Keeps DeepSpeed from compiling its shared-memory kernel at the first launch; only inference calls it."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def fake_store() -> dist.Store:
    """A store for torch's process group ``fake``, which this import registers; torch has no public name for either."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    return FakeStore()
