"""Runs a function on real ranks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dist_imsr import devices
from dist_imsr.benchmarks.ranks import DeviceType, LocalRanks

_kept: dict[int, LocalRanks] = {}  # worlds on CUDA, which take long to begin


@contextmanager
def ranks_on(world_size: int, device: DeviceType = "cpu") -> Iterator[LocalRanks]:
    """A new world; on CUDA the one that the module's tests share, which must leave its processes as they were."""
    if device == "cpu":
        with LocalRanks(world_size, seconds=120) as ranks:
            yield ranks
        return
    if devices.device_count() < world_size:
        pytest.skip(f"{world_size} ranks need as many CUDA devices, and there are {devices.device_count()}")
    if world_size not in _kept:
        _kept[world_size] = LocalRanks(world_size, seconds=240, device=device)
    try:
        yield _kept[world_size]
    except BaseException:  # nobody knows what a failed call has left
        end_kept(world_size)
        raise


def end_kept(*world_sizes: int) -> None:
    """Ends worlds that tests have shared, all of them by default."""
    for world_size in world_sizes or tuple(_kept):
        _kept.pop(world_size).__exit__(None, None, None)


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, device: DeviceType = "cpu") -> list[Any]:
    """Calls ``function(topology, *args)`` on every rank of a world and returns the results by rank."""
    with ranks_on(world_size, device) as ranks:
        return ranks.call(function, *args)


def on_devices(*names: str, cpu: list[Any], cuda: list[Any]) -> pytest.MarkDecorator:
    """Parametrises a test by ``device`` and what else is named: cases of the host and of CUDA."""

    def cases(device: str, values: list[Any]) -> list[tuple[Any, ...]]:
        return [(device, *(value if isinstance(value, tuple) else (value,))) for value in values]

    marked = [pytest.param(*case, marks=pytest.mark.cuda) for case in cases("cuda", cuda)]
    return pytest.mark.parametrize(("device", *names), [*cases("cpu", cpu), *marked])
