"""A second device that needs no hardware: its tensors stand on the host, and refuse to meet the host's own.

Code that is to run on CUDA is run here with ``device=DEVICE`` inside of `there()`: whatever a CUDA device would refuse
(operands on both sides, an array of what is not on the host) is refused here, and all else gives the host's numbers.
"""

from contextlib import contextmanager
from unittest.mock import patch

import fbgemm_gpu  # noqa: F401
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Its own name would be refused by everything; torch knows this one without a driver, and backward stays in its thread.
DEVICE = torch.device("meta")
_HOST = torch.device("cpu")
_aten = torch.ops.aten
_MOVING = {_aten.copy_, _aten._to_copy}
_PLACING = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_, _aten._unsafe_index}


def _padded(values, offsets, longest, padding=0.0):
    """fbgemm's operator, whose gradient it has not registered for a device of this name."""
    lengths = offsets[0].diff().unsqueeze(1)
    place = (torch.arange(*longest, device=values.device) < lengths).nonzero().unbind(1)
    return values.new_full((len(lengths), *longest, *values.shape[1:]), padding).index_put(place, values)


_GRADIENTS = torch.library.Library("fbgemm", "IMPL", "AutogradMeta")
_GRADIENTS.impl("jagged_to_padded_dense", _padded)


class Moved(torch.Tensor):
    """A tensor on the second device.

    Args:
        held: its values, on the host.
    """

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, device=DEVICE, **layout)

    def __init__(self, held):
        self.held = held.detach()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operator, types, args=(), kwargs=None):
        return _run(operator, args, kwargs or {})

    def __repr__(self):
        return f"Moved({self.held})"

    def tolist(self):
        return self.held.tolist()

    def numpy(self, *, force=False):
        if not force:
            raise TypeError("can't convert a device's tensor to numpy")
        return self.held.numpy(force=True)

    def __array__(self, *args, **kwargs):
        raise TypeError("can't convert a device's tensor to numpy")

    def data_ptr(self):
        raise RuntimeError("the host asks for an address on the device")


@contextmanager
def there():
    """What is done in this context may use the second device."""
    # torch knows no mixed precision on it, and what is asked of it here is to be off.
    with _Mode(), _Literals(), patch.object(torch, "autocast", _plain):
        yield


def held(tensor):
    """The values of a tensor on the second device, which writing to it changes; others as they are."""
    return tensor.held if isinstance(tensor, Moved) else tensor


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return _run(operator, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Python's numbers come over the host: torch itself would forget them on a device of this name."""

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
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    moved = {id(one.held): one for one in given if isinstance(one, Moved)}
    _check(operator, args, kwargs, given)
    target = kwargs.get("device")
    if target is not None:
        kwargs = kwargs | {"device": _HOST}
    made = operator(*tree_map_only(Moved, held, args), **tree_map_only(Moved, held, kwargs))
    on_device = bool(moved) if target is None else torch.device(target) == DEVICE
    if _of(operator) is _aten.copy_:
        on_device = isinstance(args[0], Moved)
    if not on_device:
        return made
    return tree_map_only(torch.Tensor, lambda one: moved[id(one)] if id(one) in moved else Moved(one), made)


def _check(operator, args, kwargs, given):
    """Refuses what a CUDA device does: operands on both sides, but for single numbers."""
    if _of(operator) in _MOVING:
        return
    if _of(operator) in _PLACING and isinstance(args[0], Moved):  # places are brought over
        given = [args[0], *args[2:]]
    single = _of(operator) is not _aten.cat
    host = [one for one in given if isinstance(one, torch.Tensor) and not isinstance(one, Moved)]
    host = [one for one in host if one.ndim or not single]
    if host and any(isinstance(one, Moved) for one in given):
        shapes = ", ".join(
            f"{tuple(one.shape)} on the {'device' if isinstance(one, Moved) else 'host'}" for one in given
        )
        raise RuntimeError(f"{operator}: operands on two devices: {shapes}")


def _of(operator):
    return operator.overloadpacket
