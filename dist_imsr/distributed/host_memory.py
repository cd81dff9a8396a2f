"""Large blocks of memory that grow in place, and the peak memory of a process."""

import ctypes
import math
import mmap
from pathlib import Path

import torch

from dist_imsr import devices
from dist_imsr.phases import process_memory

_LIBC = ctypes.CDLL(None)
_OWN_MAPPING = 32 << 20  # bytes from which glibc never takes a block from its heap


def resize_in_place(like: torch.Tensor, rows: int) -> torch.Tensor:
    """Memory for more or fewer rows than a tensor has: its own if that is large enough, else a new block.

    A large block on the host has capacity for half as many more rows, which use no memory until they are written. It
    uses huge pages if the kernel has them: the first touch of ordinary pages takes several times as long as writing.

    Args:
        like: ``[n, ...]``; its memory is used again only if it is contiguous and starts at its storage's start.
        rows: the number of rows.

    Returns:
        ``[rows, ...]`` of the same type and device: the rows of ``like`` if it is the same memory, else any values.
    """
    size = rows * math.prod(like.shape[1:]) * like.element_size()
    owns_block = like.is_contiguous() and like.storage_offset() == 0
    if owns_block and like.untyped_storage().nbytes() >= size:
        return like.as_strided((rows, *like.shape[1:]), like.stride())
    if devices.is_cuda(like.device) or size < _OWN_MAPPING:
        return like.new_empty(rows, *like.shape[1:])
    resized = like.new_empty(rows + rows // 2, *like.shape[1:])
    block = resized.untyped_storage()
    first = -(-block.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = block.data_ptr() + block.nbytes() - first
    # Advice only: the kernel may ignore it.
    _LIBC.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), ctypes.c_int(mmap.MADV_HUGEPAGE))
    return resized[:rows]


def peak_bytes(device: torch.device, reset: bool = False) -> int:
    """This process's peak memory since the last reset, in bytes.

    Args:
        device: CPU for resident memory, CUDA for its allocator's.
        reset: first resets the peak to the memory in use now.
    """
    if devices.is_cuda(device):
        if reset:
            devices.reset_peak_bytes(device)
        return devices.peak_bytes(device)
    if reset:
        # Freed memory that malloc keeps would be used again without raising the peak.
        _LIBC.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return process_memory()["VmHWM"]
