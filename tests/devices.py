"""Moves values to a device for a test, and results back."""

import torch


def on(device, value):
    """Moves tensors, modules, and those in named tuples to a device; returns other values unchanged."""
    if isinstance(value, (torch.Tensor, torch.nn.Module)):
        return value.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(on(device, part) for part in value))
    return value


def call_on(device, function, *args):
    """Calls a function or module with arguments on a device; returns the result on the CPU."""
    return on("cpu", on(device, function)(*(on(device, one) for one in args)))
