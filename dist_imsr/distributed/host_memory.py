"""Large blocks of memory: what they cost to touch, and what a process holds at most."""

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
    """Memory for more or fewer rows than a tensor has: its own where there is room, else a new block.

    A large block of the host's has room for half as many more rows, which take no memory until they are written, and
    comes in huge pages where the kernel has them: the first touch of ordinary ones takes several times as long as the
    writing.

    Args:
        like: ``[n, ...]``; its block is taken for its own where it is contiguous and begins it.
        rows: how many.

    Returns:
        ``[rows, ...]`` of any values but those of ``like`` that lie there; of the same kind, on the same device.
    """
    size = rows * math.prod(like.shape[1:]) * like.element_size()
    whole = like.is_contiguous() and like.storage_offset() == 0
    if whole and like.untyped_storage().nbytes() >= size:
        return like.as_strided((rows, *like.shape[1:]), like.stride())
    if devices.is_cuda(like.device) or size < _OWN_MAPPING:
        return like.new_empty(rows, *like.shape[1:])
    made = like.new_empty(rows + rows // 2, *like.shape[1:])
    block = made.untyped_storage()
    first = -(-block.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = block.data_ptr() + block.nbytes() - first
    # Advice that a kernel may refuse, and no harm is done.
    _LIBC.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), ctypes.c_int(mmap.MADV_HUGEPAGE))
    return made[:rows]


def peak_bytes(device: torch.device, reset: bool = False) -> int:
    """The most memory that this process has held since the last reset: resident, or of CUDA's allocator.

    Args:
        device: whose memory.
        reset: whether to begin anew, with what is held now.

    Returns:
        Bytes.
    """
    if devices.is_cuda(device):
        if reset:
            devices.reset_peak_bytes(device)
        return devices.peak_bytes(device)
    if reset:
        # Freed memory that malloc keeps would be taken again without a trace.
        _LIBC.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return process_memory()["VmHWM"]
