"""A rank's rows of a tensor that all ranks hold together, as torch.distributed.checkpoint plans them."""

from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class ShardRows:
    """Consecutive rows of a tensor; writing to ``values`` writes to what they were taken from.

    Planners of torch.distributed.checkpoint ask the three methods with underscores. Unlike a DTensor, ranks may hold
    any numbers of rows, and none; unlike a ShardedTensor, it needs no process group.

    Args:
        values: ``[n, ...]``, rows ``first .. first + n - 1``.
        first: the number of the first of them.
        total: the rows of all ranks together; by default these are all.
        saved: whether this rank writes them; one does where several hold the same.
    """

    def __init__(self, values: torch.Tensor, first: int = 0, total: int | None = None, saved: bool = True) -> None:
        self.values, self.first, self.saved = values, first, saved
        self.total = len(values) if total is None else total

    def copied(self, device: torch.device | None = None) -> "ShardRows":
        """Copies the rows.

        Args:
            device: where it is wanted; beside these by default.

        Returns:
            A copy.
        """
        values = self.values.detach().to(device or self.values.device, copy=True)
        return ShardRows(values, self.first, self.total, self.saved)

    def size(self) -> torch.Size:
        """The shape over all ranks."""
        return torch.Size([self.total, *self.values.shape[1:]])

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        offsets = torch.Size([self.first, *[0] * (self.values.ndim - 1)])
        return [ChunkStorageMetadata(offsets, self.values.shape)] if len(self.values) else []

    def __create_write_items__(self, name: str, rows: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.values)
        return [
            WriteItem(
                MetadataIndex(name, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, self.size()),
            )
            for chunk in self.__create_chunk_list__()
            if self.saved
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        return self.values
