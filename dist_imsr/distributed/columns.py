"""Columns of jagged rows: padded for some users, sent to a device, moved inside their memory."""

import math

import torch

from dist_imsr import devices
from dist_imsr.distributed.host_memory import resize_in_place

PART = {
    "cpu": 1 << 20,
    "cuda": 64 << 20,
}  # bytes that are moved at a time: what a processor's cache holds; worth a call


def padded(column: torch.Tensor, places: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Some users' rows of a column, each user's beside each other.

    Args:
        column: ``[S, ...]``.
        places: ``[B, K]`` int64, where the rows are; any number for padding.
        mask: ``[B, K]`` bool, false for padding.

    Returns:
        A copy, ``[B, K, ...]``; zero for padding.
    """
    rows = column.index_select(0, places.clamp(max=len(column) - 1).flatten()).view(*places.shape, *column.shape[1:])
    return rows.masked_fill_(~mask.view(*mask.shape, *[1] * (rows.dim() - 2)), 0)


def sent(made: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    """Sends a tensor on its way, so that a CUDA device goes on working meanwhile.

    Args:
        made: on any device.
        device: where it is wanted; where it is without it.

    Returns:
        The tensor there.
    """
    if device is None or made.device == device:
        return made
    # What comes to the host is waited for: nobody could tell when it is there.
    return devices.pin(made, device).to(device, non_blocking=True) if devices.is_cuda(device) else made.to(device)


def moved(column: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """Moves a column's rows, in the same memory where it has room; the column itself is lost.

    Args:
        column: ``[S, ...]``.
        source: ``[n]`` int64, ascending.

    Returns:
        ``column[source]``.
    """
    made, parts = resize_in_place(column, len(source)), _parts(column, len(source))
    # Rows that move back are in the way of those before them, and rows that move forward of those behind.
    for part in parts if len(source) <= len(column) else reversed(parts):
        made[part] = column.index_select(0, source[part])
    return made


def _parts(column: torch.Tensor, rows: int) -> list[slice]:
    """So many rows of a column cut into parts; none where there is nothing to move."""
    width = math.prod(column.shape[1:]) * column.element_size()
    step = max(PART[column.device.type] // max(width, 1), 1)
    return [slice(at, min(at + step, rows)) for at in range(0, rows if column.numel() else 0, step)]
