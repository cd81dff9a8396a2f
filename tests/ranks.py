"""Runs a function on real ranks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dist_imsr import devices
from dist_imsr.benchmarks.ranks import DeviceType, LocalRanks

_shared: dict[int, LocalRanks] = {}  # worlds on CUDA, which take long to start


@contextmanager
def ranks_on(world_size: int, device: DeviceType = "cpu") -> Iterator[LocalRanks]:
    """A new world; on CUDA, a world that the module's tests share. Tests must leave its processes unchanged."""
    if device == "cpu":
        with LocalRanks(world_size, seconds=120) as ranks:
            yield ranks
        return
    if devices.device_count() < world_size:
        pytest.skip(f"{world_size} ranks need as many CUDA devices, and there are {devices.device_count()}")
    if world_size not in _shared:
        _shared[world_size] = LocalRanks(world_size, seconds=240, device=device)
    try:
        yield _shared[world_size]
    except BaseException:  # the state of its processes is unknown
        close_shared(world_size)
        raise


def close_shared(*world_sizes: int) -> None:
    """Ends shared worlds, all of them by default."""
    for world_size in world_sizes or tuple(_shared):
        _shared.pop(world_size).__exit__(None, None, None)


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, device: DeviceType = "cpu") -> list[Any]:
    """Calls ``function(topology, *args)`` on every rank of a world and returns the results by rank."""
    with ranks_on(world_size, device) as ranks:
        return ranks.call(function, *args)


def on_devices(*names: str, cpu: list[Any], cuda: list[Any]) -> pytest.MarkDecorator:
    """Parametrises a test by ``device`` and further names, with cases for the CPU and for CUDA."""

    def cases(device: str, values: list[Any]) -> list[tuple[Any, ...]]:
        return [(device, *(value if isinstance(value, tuple) else (value,))) for value in values]

    marked = [pytest.param(*case, marks=pytest.mark.cuda) for case in cases("cuda", cuda)]
    return pytest.mark.parametrize(("device", *names), [*cases("cpu", cpu), *marked])
