"""Runs a function on real ranks."""

from collections.abc import Callable
from typing import Any

from dist_imsr.benchmarks.ranks import DeviceType, LocalRanks


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, device: DeviceType = "cpu") -> list[Any]:
    """Calls ``function(topology, *args)`` on every rank of a new world and returns the results by rank."""
    with LocalRanks(world_size, seconds=120, device=device) as ranks:
        return ranks.call(function, *args)
