"""Does on a device what a test asks for with tensors of the host."""

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
