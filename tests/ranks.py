"""Runs a function on real ranks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dist_imsr import devices
from dist_imsr.benchmarks.ranks import DeviceType, LocalRanks


class _SharedRanks(LocalRanks):
    """Ranks that remember whether a call has failed: the others may still be at work, and answer the next call."""

    failed = False

    def call(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        try:
            return super().call(function, *args)
        except BaseException:
            self.failed = True
            raise


_shared: dict[tuple[int, DeviceType], _SharedRanks] = {}


@contextmanager
def ranks_on(world_size: int, device: DeviceType = "cpu", fresh: bool = False) -> Iterator[LocalRanks]:
    """A world that the module's tests share, since ranks start and first train slowly.

    Args:
        world_size: number of ranks.
        device: of the ranks.
        fresh: a new world for functions that leave its processes changed or measure them; only on the CPU.
    """
    if fresh and device == "cpu":
        with LocalRanks(world_size, seconds=300) as ranks:
            yield ranks
        return
    if device == "cuda" and devices.device_count() < world_size:
        pytest.skip(f"{world_size} ranks need as many CUDA devices, and there are {devices.device_count()}")
    key = world_size, device
    if key not in _shared:
        _shared[key] = _SharedRanks(world_size, seconds=300, device=device)
    ranks = _shared[key]
    try:
        yield ranks
    finally:
        if ranks.failed:  # expected or not
            close_shared(key)


def close_shared(*keys: tuple[int, DeviceType]) -> None:
    """Ends shared worlds, all of them by default."""
    for key in keys or tuple(_shared):
        if (ranks := _shared.pop(key, None)) is not None:
            ranks.__exit__(None, None, None)


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, device: DeviceType = "cpu", fresh: bool = False
) -> list[Any]:
    """Calls ``function(topology, *args)`` on every rank of a world and returns the results by rank."""
    with ranks_on(world_size, device, fresh) as ranks:
        return ranks.call(function, *args)


def on_devices(*names: str, cpu: list[Any], cuda: list[Any]) -> pytest.MarkDecorator:
    """Parametrises a test by ``device`` and further names, with cases for the CPU and for CUDA."""

    def cases(device: str, values: list[Any]) -> list[tuple[Any, ...]]:
        return [(device, *(value if isinstance(value, tuple) else (value,))) for value in values]

    marked = [pytest.param(*case, marks=pytest.mark.cuda) for case in cases("cuda", cuda)]
    return pytest.mark.parametrize(("device", *names), [*cases("cpu", cpu), *marked])
