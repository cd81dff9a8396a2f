"""Helpers for the device that a rank works on; on the CPU each of them is free and changes nothing.

`dist_imsr.distributed.topology` chooses the device.
"""

import ctypes
import functools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.profiler import ProfilerActivity

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_GATHERED = 64 << 20  # bytes of a device that are gathered at a time to be copied


def is_cuda(device: torch.device) -> bool:
    """Whether the device is a CUDA device, which works asynchronously to the host."""
    return device.type == "cuda"


def device_count() -> int:
    """The number of CUDA devices that this process sees; 0 if DeepSpeed's variable DS_ACCELERATOR is ``cpu``."""
    return 0 if os.environ.get("DS_ACCELERATOR") == "cpu" else torch.cuda.device_count()


def device_uuid(device: torch.device) -> str | None:
    """The UUID of a CUDA device, which does not depend on CUDA_VISIBLE_DEVICES; None for the CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if is_cuda(device) else None


def setup_device(device: torch.device) -> None:
    """Makes a device the current one of this process and selects deterministic algorithms.

    Call it before any work on the device.
    """
    set_deterministic(True)
    if not is_cuda(device):
        keep_freed_memory()
    else:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it for determinism
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False  # on by default, unlike TF32 for matrix products


def keep_freed_memory() -> None:
    """Keeps blocks below 32 MiB that this process frees for its next ones, up to 2 GiB.

    By default, glibc returns much of it to the system after each step, which clears it for the next one: a fifth of the
    time of a training step on the CPU.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(_M_TRIM_THRESHOLD, (2 << 30) - 1)


def set_deterministic(deterministic: bool) -> None:
    """Makes sums of this process run in a fixed order, on the host and in FBGEMM's kernels on a device too, or not.

    torch warns of operators that have no deterministic algorithm.
    """
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    module: Any = torch.utils.deterministic  # whose stub lacks the name
    module.fill_uninitialized_memory = False  # costs time, and no code reads uninitialized memory


def synchronize(device: torch.device) -> None:
    """Waits for all work submitted to a device."""
    if is_cuda(device):
        torch.cuda.synchronize(device)


def profiler_activities(device: torch.device) -> list[ProfilerActivity]:
    """The activities to pass to ``torch.profiler.profile``."""
    return [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * is_cuda(device)]


def peak_bytes(device: torch.device) -> int:
    """The most bytes that torch has allocated on a device since `reset_peak_bytes`; 0 for the CPU."""
    return torch.cuda.max_memory_allocated(device) if is_cuda(device) else 0


def reset_peak_bytes(device: torch.device) -> None:
    """Restarts `peak_bytes` from the bytes that are allocated now."""
    if is_cuda(device):
        torch.cuda.reset_peak_memory_stats(device)


def memory_bytes(device: torch.device) -> int | None:
    """The memory of a device in bytes; None for the CPU, whose memory the ranks of a machine share."""
    return torch.cuda.mem_get_info(device)[1] if is_cuda(device) else None


def free_bytes(device: torch.device) -> int | None:
    """The bytes that this process can still allocate, torch's cached blocks included; None for the CPU."""
    if not is_cuda(device):
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def pin(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copies a CPU tensor to pinned memory, from where a CUDA device copies it asynchronously.

    Returns:
        The pinned copy; the tensor itself if the rank works on the CPU or the tensor is on a CUDA device already.
    """
    return tensor.pin_memory() if is_cuda(device) and not is_cuda(tensor.device) else tensor


def prefetch_stream(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which the current stream of the device is its side stream.

    Work submitted inside runs concurrently with the main stream, and after earlier work of the side stream.
    """
    return torch.cuda.stream(_side_stream(device)) if is_cuda(device) else nullcontext()


def wait_for_prefetch(device: torch.device, *prefetched: Any) -> None:
    """Makes the current stream wait for the side stream of `prefetch_stream`.

    Args:
        device: the rank's device.
        prefetched: results of the side stream that the current stream will use: tensors, or objects with a
            ``record_stream`` method.
    """
    if is_cuda(device):
        current = torch.cuda.current_stream(device)
        current.wait_stream(_side_stream(device))
        for result in prefetched:
            result.record_stream(current)  # else the allocator could reuse the memory while this stream reads it


def copy_to_host(tensor: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    """Copies a tensor to the host; from a CUDA device into pinned memory, while the device and the host do other work.

    Such a copy has a stream of its own and follows all work that was submitted to the current stream. `wait_for_copies`
    must be called before the tensor changes, and what `copies_done` returns before the host reads the copy.

    Args:
        tensor: ``[n, ...]``, on any device.
        rows: ``[m]`` int64 on the host, the rows to copy in this order; all by default.

    Returns:
        A tensor on the host with its own memory.
    """
    tensor = tensor.detach()
    if not is_cuda(tensor.device):
        return tensor.to("cpu", copy=True) if rows is None else tensor.to("cpu")[rows]
    stream = _copy_stream(tensor.device)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    copy = torch.empty(
        tensor.shape if rows is None else (len(rows), *tensor.shape[1:]), dtype=tensor.dtype, pin_memory=True
    )
    with torch.cuda.stream(stream):
        if rows is None:
            copy.copy_(tensor, non_blocking=True)
        else:
            size = max(_GATHERED // max(math.prod(tensor.shape[1:]) * tensor.element_size(), 1), 1)
            for part, some in zip(copy.split(size), rows.split(size), strict=True):
                places = pin(some, tensor.device).to(tensor.device, non_blocking=True)
                part.copy_(tensor.index_select(0, places), non_blocking=True)
    tensor.record_stream(stream)  # else the allocator could reuse the memory while it is copied
    return copy


def wait_for_copies(device: torch.device) -> None:
    """Makes the current stream wait for the copies of `copy_to_host` so far; the host does not wait."""
    if is_cuda(device):
        torch.cuda.current_stream(device).wait_stream(_copy_stream(device))


def copies_done(device: torch.device) -> Callable[[], None]:
    """Returns a function, for any thread, with which the host waits for the copies of `copy_to_host` so far."""
    if not is_cuda(device):
        return lambda: None
    return _copy_stream(device).record_event().synchronize


@contextmanager
def matmul_precision(device: torch.device, tf32: bool) -> Iterator[None]:
    """Sets the precision of float32 matrix products and convolutions, forward and backward.

    Args:
        device: the rank's device.
        tf32: round the factors to TF32 (11 bits) on devices that support it; else use all 24 bits.
    """
    # These are torch's older names: torch.compile reads them, and refuses some values of the newer ones.
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn] if is_cuda(device) else []
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = tf32
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    # Not the side stream: batches would wait for the copy of a whole table.
    return torch.cuda.Stream(device)
