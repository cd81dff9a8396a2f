"""A fake second device that needs no hardware: its tensors are stored on the CPU, but refuse to mix with CPU tensors.

Run code for CUDA with ``device=DEVICE`` inside of `second_device()`: operations that a CUDA device would refuse
(operands on two devices, conversion of device tensors to numpy) are refused, others give the numbers of the CPU.
"""

import threading
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import fbgemm_gpu  # noqa: F401
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# torch accepts no new device type everywhere; this one needs no driver, and its backward pass stays in its thread.
DEVICE = torch.device("meta")
_HOST = torch.device("cpu")
_aten = torch.ops.aten
_MOVING = {_aten.copy_, _aten._to_copy}
_WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "_unique2",
    "unique_dim",
    "masked_select",
    "bincount",
    "is_nonzero",
    "equal",
}
_waits, _counted = [], SimpleNamespace(thread=0)
_INDEXING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_, _aten._unsafe_index}


def _padded(values, offsets, longest, padding=0.0):
    """Replaces fbgemm's operator, which has no gradient for this device type."""
    lengths = cpu_values(offsets[0]).diff().unsqueeze(1)
    place = (torch.arange(*longest) < lengths).nonzero().unbind(1)
    return values.new_full((len(lengths), *longest, *values.shape[1:]), padding).index_put(place, values)


_GRADIENTS = torch.library.Library("fbgemm", "IMPL", "AutogradMeta")
_GRADIENTS.impl("jagged_to_padded_dense", _padded)


class DeviceTensor(torch.Tensor):
    """A tensor on the second device.

    Args:
        values: its values, on the CPU.
    """

    @staticmethod
    def __new__(cls, values):
        layout = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, device=DEVICE, **layout)

    def __init__(self, values):
        self.on_cpu = values.detach()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return _run(operator, args, kwargs or {})

    def __repr__(self):
        return f"DeviceTensor({self.on_cpu})"

    def tolist(self):
        _count("tolist")
        return self.on_cpu.tolist()

    def numpy(self, *, force=False):
        if not force:
            raise TypeError("can't convert a device's tensor to numpy")
        _count("numpy")
        return self.on_cpu.numpy(force=True)

    def __array__(self, *args, **kwargs):
        raise TypeError("can't convert a device's tensor to numpy")

    def data_ptr(self):
        raise RuntimeError("the CPU has no address of a device tensor")


@contextmanager
def second_device():
    """Makes the second device available in this context."""
    # torch has no mixed precision for this device type; tests only disable it.
    with _Mode(), _Literals(), patch.object(torch, "autocast", _plain):
        yield


@contextmanager
def counted_waits():
    """Counts, by name, the operations in this context for which the host would wait for a CUDA device.

    These are reading a value, results whose sizes depend on values, and copies that are not asynchronous. Other threads
    may wait.
    """
    _waits.append(Counter())
    _counted.thread = threading.get_ident()
    try:
        yield _waits[-1]
    finally:
        _waits.pop()


@contextmanager
def uncounted():
    """For stand-ins of tests, inside `counted_waits`."""
    _waits.append(None)
    try:
        yield
    finally:
        _waits.pop()


def _count(name):
    if _waits and _waits[-1] is not None and threading.get_ident() == _counted.thread:
        _waits[-1][f"{name} in {_caller()}"] += 1


def _caller():
    """The innermost function of this project."""
    frames = (one for one, _ in traceback.walk_stack(None))
    own = (one for one in frames if "/dist_imsr/" in one.f_code.co_filename)
    return next((f"{Path(one.f_code.co_filename).stem}.{one.f_code.co_name}" for one in own), "a library")


def _wait(operator, args, kwargs, tensors):
    """The name of an operation that waits; None for others."""
    packet, far = _of(operator), [one for one in tensors if isinstance(one, DeviceTensor)]
    near = [one for one in tensors if isinstance(one, torch.Tensor) and not isinstance(one, DeviceTensor)]
    if packet in _MOVING:
        asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2] is True)
        to_device = torch.device(kwargs.get("device") or args[0].device) == DEVICE
        if packet is _aten.copy_ and far and near:
            return None if to_device and asynchronous else f"{'to' if to_device else 'from'} the device"
        if packet is _aten._to_copy and kwargs.get("device") is not None and to_device != bool(far):
            return None if to_device and asynchronous else f"{'to' if to_device else 'from'} the device"
        return None
    if not far:
        return None
    if packet in _INDEXING and any(one.dtype == torch.bool for one in args[1] if one is not None):
        return "a mask as an index"
    if packet is _aten.repeat_interleave:
        return None if kwargs.get("output_size") is not None else "repeat_interleave"
    return packet.__name__ if packet.__name__ in _WAITING else None


def cpu_values(tensor):
    """The CPU storage of a tensor on the second device, shared with it; other values unchanged."""
    return tensor.on_cpu if isinstance(tensor, DeviceTensor) else tensor


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return _run(operator, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Makes tensors of Python's numbers on the CPU first: torch itself would drop the numbers on this device type."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.new_tensor:
            like, *args = args
            function, kwargs = torch.tensor, {"dtype": like.dtype, "device": like.device} | kwargs
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        return function(*args, **kwargs)


@contextmanager
def _plain(device_type, dtype=None, enabled=True):
    assert not enabled
    yield


def _run(operator, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    moved = {id(one.on_cpu): one for one in tensors if isinstance(one, DeviceTensor)}
    _check(operator, args, kwargs, tensors)
    if _waits and _waits[-1] is not None and (name := _wait(operator, args, kwargs, tensors)):
        _count(name)
    target = kwargs.get("device")
    if target is not None:
        kwargs = kwargs | {"device": _HOST}
    made = operator(*tree_map_only(DeviceTensor, cpu_values, args), **tree_map_only(DeviceTensor, cpu_values, kwargs))
    on_device = bool(moved) if target is None else torch.device(target) == DEVICE
    if _of(operator) is _aten.copy_:
        on_device = isinstance(args[0], DeviceTensor)
    if not on_device:
        return made
    return tree_map_only(torch.Tensor, lambda one: moved[id(one)] if id(one) in moved else DeviceTensor(one), made)


def _check(operator, args, kwargs, tensors):
    """Refuses operands on two devices, except for scalars, as CUDA does."""
    if _of(operator) in _MOVING:
        return
    if _of(operator) in _INDEXING and isinstance(args[0], DeviceTensor):  # torch copies the indices
        tensors = [args[0], *args[2:]]
    single = _of(operator) is not _aten.cat
    host = [one for one in tensors if isinstance(one, torch.Tensor) and not isinstance(one, DeviceTensor)]
    host = [one for one in host if one.ndim or not single]
    if host and any(isinstance(one, DeviceTensor) for one in tensors):
        shapes = ", ".join(
            f"{tuple(one.shape)} on the {'device' if isinstance(one, DeviceTensor) else 'host'}" for one in tensors
        )
        raise RuntimeError(f"{operator}: operands on two devices: {shapes}")


def _of(operator):
    return operator.overloadpacket
