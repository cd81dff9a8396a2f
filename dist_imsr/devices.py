"""What a CUDA device is asked for and the host alone does without, by the `torch.device` that a rank works on.

Which one that is, `dist_imsr.distributed.topology` decides. On the host all calls here cost nothing and change nothing.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.profiler import ProfilerActivity


def is_cuda(device: torch.device) -> bool:
    """Whether work on a device goes on beside the host's.

    Args:
        device: a rank's.

    Returns:
        True for CUDA, false for the host.
    """
    return device.type == "cuda"


def device_count() -> int:
    """How many CUDA devices this process sees.

    Returns:
        0 where it is to work on the host, as DeepSpeed's variable DS_ACCELERATOR may say.
    """
    return 0 if os.environ.get("DS_ACCELERATOR") == "cpu" else torch.cuda.device_count()


def device_uuid(device: torch.device) -> str | None:
    """Tells a device from all others of its machine, whatever number it has among those that a process sees.

    Args:
        device: a rank's.

    Returns:
        Its UUID; None for the host.
    """
    return str(torch.cuda.get_device_properties(device).uuid) if is_cuda(device) else None


def setup_device(device: torch.device) -> None:
    """Makes a device the one that this process works on, before anything is done there.

    The same work gives the same bits from then on: sums that CUDA takes in the order in which its threads come by are
    taken in a fixed one, those of FBGEMM's kernels among them. Where an operator knows no such order, torch warns.

    Args:
        device: a rank's.
    """
    if is_cuda(device):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False  # by default it convolves so, though matrices are not multiplied so
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic: Any = torch.utils.deterministic  # whose stub lacks the name
        deterministic.fill_uninitialized_memory = False  # nobody reads what nobody wrote


def synchronize(device: torch.device) -> None:
    """Returns once a device has done all that it was asked for.

    Args:
        device: a rank's.
    """
    if is_cuda(device):
        torch.cuda.synchronize(device)


def profiler_activities(device: torch.device) -> list[ProfilerActivity]:
    """What a trace of a rank's work must follow.

    Args:
        device: the rank's.

    Returns:
        For ``torch.profiler.profile``.
    """
    return [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * is_cuda(device)]


def peak_bytes(device: torch.device) -> int:
    """The most memory of a device that this process's tensors have held since `reset_peak_bytes`.

    Args:
        device: a rank's.

    Returns:
        Bytes; 0 on the host.
    """
    return torch.cuda.max_memory_allocated(device) if is_cuda(device) else 0


def reset_peak_bytes(device: torch.device) -> None:
    """From here on `peak_bytes` begins with what is held now.

    Args:
        device: a rank's.
    """
    if is_cuda(device):
        torch.cuda.reset_peak_memory_stats(device)


def memory_bytes(device: torch.device) -> int | None:
    """How much memory a device has.

    Args:
        device: a rank's.

    Returns:
        Bytes; None for the host, whose memory is not a rank's own.
    """
    return torch.cuda.mem_get_info(device)[1] if is_cuda(device) else None


def free_bytes(device: torch.device) -> int | None:
    """How much of a device's memory this process may still take.

    Args:
        device: a rank's.

    Returns:
        Bytes, with those that torch's allocator keeps for later; None for the host.
    """
    if not is_cuda(device):
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def pin(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Brings a tensor of the host's to where a device copies from while both go on working.

    Args:
        tensor: on any device.
        device: a rank's.

    Returns:
        A copy in pinned memory; the tensor itself where the rank works on the host, or it is no tensor of the host's.
    """
    return tensor.pin_memory() if is_cuda(device) and not is_cuda(tensor.device) else tensor


def prefetch_stream(device: torch.device) -> AbstractContextManager[Any]:
    """Work that is begun inside goes on beside what is begun outside, after what was begun inside before.

    Args:
        device: a rank's.

    Returns:
        A context, in which the device's current stream is one of its own.
    """
    return torch.cuda.stream(_side_stream(device)) if is_cuda(device) else nullcontext()


def wait_for_prefetch(device: torch.device, *made: Any) -> None:
    """Work that is begun from here on comes after all that was begun `aside`.

    Args:
        device: a rank's.
        made: aside, and to be used from here on: tensors, and what has a ``record_stream`` as they do.
    """
    if is_cuda(device):
        here = torch.cuda.current_stream(device)
        here.wait_stream(_side_stream(device))
        for one in made:
            one.record_stream(here)  # or their memory would be taken again while this stream still reads it


@contextmanager
def matmul_precision(device: torch.device, tf32: bool) -> Iterator[None]:
    """How float32 matrices are multiplied and convolved inside, forward and backward.

    Args:
        device: a rank's.
        tf32: with factors rounded to TF32, of 11 bits, on devices that have it; else with all 24.
    """
    # torch's older names of these settings: torch.compile reads them, and refuses some values of the newer ones.
    kinds: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn] if is_cuda(device) else []
    before = [kind.allow_tf32 for kind in kinds]
    try:
        for kind in kinds:
            kind.allow_tf32 = tf32
        yield
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind.allow_tf32 = value


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
