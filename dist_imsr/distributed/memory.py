"""Large blocks of memory: what they cost to touch, and what a process holds at most."""

import ctypes
import mmap
from pathlib import Path

import torch

_LIBC = ctypes.CDLL(None)
_OWN_MAPPING = 32 << 20  # bytes from which glibc never takes a block from its heap


def untouched(like: torch.Tensor, rows: int) -> torch.Tensor:
    """Memory that nobody has written yet, for the rows of a tensor.

    A large block of the host's comes in huge pages where the kernel has them: the first touch of ordinary ones takes
    several times as long as the writing.

    Args:
        like: ``[n, ...]``.
        rows: how many.

    Returns:
        ``[rows, ...]`` of any values, of the same kind and on the same device.
    """
    made = like.new_empty(rows, *like.shape[1:])
    _advise(made, mmap.MADV_HUGEPAGE)
    return made


def give_back(tensor: torch.Tensor, rows: int) -> None:
    """Returns the pages of a large block of the host's, where nothing is needed any more, to the system.

    Args:
        tensor: ``[n, ...]``, contiguous.
        rows: how many are needed; the others have any values from here on.
    """
    _advise(tensor[rows:], mmap.MADV_DONTNEED)


def _advise(tensor: torch.Tensor, advice: int) -> None:
    """Tells the kernel about the whole pages of a large tensor; no harm is done where it does not listen."""
    begin, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    if tensor.device.type == "cpu" and tensor.untyped_storage().nbytes() >= _OWN_MAPPING:
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (begin + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < end:
            _LIBC.madvise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), ctypes.c_int(advice))


def peak_bytes(device: torch.device, reset: bool = False) -> int:
    """The most memory that this process has held since the last reset: resident, or of CUDA's allocator.

    Args:
        device: whose memory.
        reset: whether to begin anew, with what is held now.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        # Freed memory that malloc keeps would be taken again without a trace.
        _LIBC.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
