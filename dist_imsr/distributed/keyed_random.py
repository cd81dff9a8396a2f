"""Random numbers as a pure function of keys, the same on every rank and world size.

Uniform numbers are the same on all devices. Normal ones use a logarithm and a cosine, whose last float64 bit may differ
on CUDA.

The generator chains SplitMix64's finaliser (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators")
over the keys, and has a counter instead of a state.
"""

import math

import torch

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_LOW = (1 << 32) - 1


def uniform(dim: int, *keys: int | torch.Tensor) -> torch.Tensor:
    """Uniform numbers in [0, 1).

    Args:
        dim: numbers for each key.
        keys: integers, or int64 tensors that broadcast to one shape ``[...]``.

    Returns:
        ``[..., dim]`` float64 on the device of the keys.
    """
    return _fraction(_hash(dim, *keys), 53)


def normal(dim: int, *keys: int | torch.Tensor) -> torch.Tensor:
    """Standard normal numbers, by Box and Muller's transform.

    Args:
        dim: numbers for each key.
        keys: integers, or int64 tensors that broadcast to one shape ``[...]``.

    Returns:
        ``[..., dim]`` float32 on the device of the keys.
    """
    bits = _hash((dim + 1) // 2, *keys)
    radius = _fraction(bits, 32).neg_().log1p_().mul_(-2).sqrt_()
    angle = (bits & _LOW).double().mul_(2 * math.pi / (1 << 32))  # a power of two rounds nothing
    return torch.cat([radius * angle.cos(), radius.mul_(angle.sin_())], -1)[..., :dim].float()


def _hash(dim: int, *keys: int | torch.Tensor) -> torch.Tensor:
    """64 random bits, ``[..., dim]``, for each key and counter."""
    device = next((key.device for key in keys if isinstance(key, torch.Tensor)), None)
    state = torch.zeros((), dtype=torch.int64, device=device)
    for key in keys:
        state = _mix(state + key)
    return _mix(state.unsqueeze(-1) + torch.arange(dim, device=device))


def _mix(bits: torch.Tensor) -> torch.Tensor:
    # In place where possible: new tensors would leave the cache.
    bits = (bits + 1).mul_(_signed(_GOLDEN))
    bits.bitwise_xor_(_shift(bits, 30)).mul_(_signed(_FIRST))
    bits.bitwise_xor_(_shift(bits, 27)).mul_(_signed(_SECOND))
    return bits.bitwise_xor_(_shift(bits, 31))


def _shift(bits: torch.Tensor, by: int) -> torch.Tensor:
    """A logical shift to the right; the one of int64 tensors keeps the sign."""
    return (bits >> by).bitwise_and_((1 << (64 - by)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant


def _fraction(bits: torch.Tensor, keep: int) -> torch.Tensor:
    """The ``keep`` highest bits as a fraction in [0, 1)."""
    return _shift(bits, 64 - keep).double().mul_(1 / (1 << keep))
