"""A rank's rows of a tensor that is spread over all ranks, for torch.distributed.checkpoint and between placements."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from dist_imsr import devices
from dist_imsr.distributed.columns import send_to

EXCHANGED = 64 << 20  # bytes


class ShardRows:
    """Consecutive rows of a tensor; ``values`` is not a copy.

    Planners of torch.distributed.checkpoint call the three methods with underscores. Unlike with a DTensor, ranks may
    hold any numbers of rows, or none; unlike a ShardedTensor, it needs no process group.

    Args:
        values: ``[n, ...]``, rows ``first .. first + n - 1``.
        first: the index of the first row.
        total: the rows of all ranks; by default those of ``values``.
        saved: whether this rank saves them; one rank does if several hold the same rows.
    """

    def __init__(self, values: torch.Tensor, first: int = 0, total: int | None = None, saved: bool = True) -> None:
        self.values, self.first, self.saved = values, first, saved
        self.total = len(values) if total is None else total

    def host_copy(self) -> "ShardRows":
        """Copies the rows as `dist_imsr.devices.copy_to_host` does, which says when they may change and be read."""
        return ShardRows(devices.copy_to_host(self.values), self.first, self.total, self.saved)

    def on_host(self) -> "ShardRows":
        """The rows themselves if they are on the host; those of a device are copied as in `host_copy`."""
        return self.host_copy() if devices.is_cuda(self.values.device) else self

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


def exchange_rows(
    old: torch.Tensor, old_bounds: list[range], new: torch.Tensor, new_bounds: list[range], rank: int
) -> None:
    """Sends rows from the ranks that held them to the ranks that hold them now; collective.

    No rank ever receives more than its own rows, and no rank sends more than `EXCHANGED` bytes at a time.

    Args:
        old: ``[len(old_bounds[rank]), ...]``, or more rows; on the host or where ``new`` is.
        old_bounds: the rows that every rank held.
        new: ``[len(new_bounds[rank]), ...]``, written to.
        new_bounds: the rows that every rank holds.
        rank: this rank.
    """
    size = max(EXCHANGED // max(math.prod(new.shape[1:]) * new.element_size(), 1), 1)
    for first in range(0, max(map(len, old_bounds)), size):
        parts = [rows[first : first + size] for rows in old_bounds]
        send = [overlap(parts[rank], rows) for rows in new_bounds]
        receive = [overlap(rows, new_bounds[rank]) for rows in parts]
        received = new.new_empty(sum(receive), *new.shape[1:])
        sent = send_to(old[first : first + sum(send)].contiguous(), new.device)
        dist.all_to_all_single(received, sent, receive, send)
        for rows, values in zip(parts, received.split(receive), strict=True):
            place = max(rows.start - new_bounds[rank].start, 0)
            new[place : place + len(values)] = values


def overlap(first: range, second: range) -> int:
    """How many integers two ranges share."""
    return max(0, min(first.stop, second.stop) - max(first.start, second.start))
