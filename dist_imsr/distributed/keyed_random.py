"""Random numbers as a pure function of keys, the same on every rank, world size and device.

SplitMix64's finaliser (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators") is chained over the
keys; a counter takes the place of a state.
"""

import math

import torch

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def uniform(dim: int, *keys: int | torch.Tensor) -> torch.Tensor:
    """Uniform numbers in [0, 1).

    Args:
        dim: how many for each key.
        keys: integers, or int64 tensors that broadcast to one shape ``[...]``.

    Returns:
        ``[..., dim]`` float64 on the device of the keys.
    """
    return _fraction(_hash(dim, *keys), 53)


def normal(dim: int, *keys: int | torch.Tensor) -> torch.Tensor:
    """Standard normal numbers, by Box and Muller's transform.

    Args:
        dim: how many for each key.
        keys: integers, or int64 tensors that broadcast to one shape ``[...]``.

    Returns:
        ``[..., dim]`` float32 on the device of the keys.
    """
    bits = _hash((dim + 1) // 2, *keys)
    radius = (-2 * torch.log1p(-_fraction(bits, 32))).sqrt()
    angle = 2 * math.pi * _fraction(bits << 32, 32)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], -1)[..., :dim].float()


def _hash(dim: int, *keys: int | torch.Tensor) -> torch.Tensor:
    """64 random bits, ``[..., dim]``, for each key and counter."""
    device = next((key.device for key in keys if isinstance(key, torch.Tensor)), None)
    state = torch.zeros((), dtype=torch.int64, device=device)
    for key in keys:
        state = _mix(state + key)
    return _mix(state.unsqueeze(-1) + torch.arange(dim, device=device))


def _mix(bits: torch.Tensor) -> torch.Tensor:
    bits = (bits + 1) * _signed(_GOLDEN)
    bits = (bits ^ _shift(bits, 30)) * _signed(_FIRST)
    bits = (bits ^ _shift(bits, 27)) * _signed(_SECOND)
    return bits ^ _shift(bits, 31)


def _shift(bits: torch.Tensor, by: int) -> torch.Tensor:
    """A logical shift to the right; that of int64 tensors drags the sign along."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant


def _fraction(bits: torch.Tensor, keep: int) -> torch.Tensor:
    """The ``keep`` highest bits as a fraction in [0, 1)."""
    return _shift(bits, 64 - keep).double() / (1 << keep)
