"""Does on a device what a test asks for with tensors of the host."""

import os

import torch


def on(device, value):
    """The same on a device: tensors, modules, and what named tuples hold of them; all else as it is."""
    if isinstance(value, (torch.Tensor, torch.nn.Module)):
        return value.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(on(device, part) for part in value))
    return value


def call_on(device, function, *args):
    """What a function or module finds on a device, back on the host."""
    return on("cpu", on(device, function)(*(on(device, one) for one in args)))


def deterministic(topology, function, *args):
    """``function(topology, *args)`` where the same work gives the same bits, which on CUDA must be asked for.

    What sums into rows there, such as the gradients of padding and of gathering, adds in whatever order comes first.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read with cuBLAS's first product of this process
    torch.use_deterministic_algorithms(topology.device.type == "cuda", warn_only=True)
    try:
        return function(topology, *args)
    finally:
        torch.use_deterministic_algorithms(False)
