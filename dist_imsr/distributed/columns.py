"""Columns of jagged rows: padding for some users, transfers to a device, moves inside their memory."""

import math

import torch

from dist_imsr import devices
from dist_imsr.distributed.host_memory import resize_in_place

# Bytes that are moved at a time: what fits a processor's cache; on a device, what is worth a kernel launch.
PART = {"cpu": 1 << 20, "cuda": 64 << 20}


def pad_rows(column: torch.Tensor, places: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Gathers some users' rows of a column, padded to the same number for each user.

    Args:
        column: ``[S, ...]``.
        places: ``[B, K]`` int64, indices into the column; any number for padding.
        mask: ``[B, K]`` bool, false for padding.

    Returns:
        A copy, ``[B, K, ...]``; zero for padding.
    """
    rows = column.index_select(0, places.clamp(max=len(column) - 1).flatten()).view(*places.shape, *column.shape[1:])
    return rows.masked_fill_(~mask.view(*mask.shape, *[1] * (rows.dim() - 2)), 0)


def send_to(tensor: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    """Copies a tensor to a device, without blocking if that is a CUDA device.

    Args:
        tensor: on any device.
        device: the destination; None leaves the tensor where it is.

    Returns:
        The tensor there.
    """
    if device is None or tensor.device == device:
        return tensor
    # A copy to the host must block: the host would not wait for it before it reads.
    return devices.pin(tensor, device).to(device, non_blocking=True) if devices.is_cuda(device) else tensor.to(device)


def move_rows(column: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Moves a column's rows, within its memory if that is large enough; the column itself is overwritten.

    Args:
        column: ``[S, ...]``.
        source: ``[n]`` int64, ascending.

    Returns:
        ``column[source]``.
    """
    moved, parts = resize_in_place(column, len(source)), _parts(column, len(source))
    # In ascending order, rows that move down overwrite only rows already read; rows that move up need descending order.
    for part in parts if len(source) <= len(column) else reversed(parts):
        moved[part] = column.index_select(0, source[part])
    return moved


def _parts(column: torch.Tensor, rows: int) -> list[slice]:
    """Slices of so many rows of a column, `PART` bytes each; none for an empty column."""
    width = math.prod(column.shape[1:]) * column.element_size()
    step = max(PART[column.device.type] // max(width, 1), 1)
    return [slice(at, min(at + step, rows)) for at in range(0, rows if column.numel() else 0, step)]
