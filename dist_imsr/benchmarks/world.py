"""Workers on real ranks: what a benchmark measures runs in their methods, and sides that are compared take turns."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

from dist_imsr import devices
from dist_imsr.benchmarks.options import WorldOptions
from dist_imsr.benchmarks.ranks import LocalRanks
from dist_imsr.distributed.topology import Topology

Result = TypeVar("Result")


class Workers:
    """One object on each rank, made by `World.start`; their methods run on all ranks at the same time."""

    def __init__(self, world: "World", index: int) -> None:
        self._world, self._index = world, index

    def call(self, method: Callable[..., Any], *args: Any) -> list[Any]:
        """Calls an unbound method, such as ``RankWorker.run``, on every rank; returns its results by rank."""
        return self._world.call(_call, self._index, method, args)

    def timed(self, method: Callable[..., Any], *args: Any) -> tuple[float, list[Any]]:
        """As `call`, preceded by the seconds until the slowest rank was done."""
        seconds, results = zip(*self._world.call(_timed_call, self._index, method, args), strict=True)
        return max(seconds), list(results)

    def seconds(self, method: Callable[..., Any], *args: Any) -> float:
        """`timed` without the results."""
        return self.timed(method, *args)[0]


class World(LocalRanks):
    """The ranks that options describe, with a limit of seconds for one call."""

    def __init__(self, options: WorldOptions, seconds: float = 600.0) -> None:
        assert options.device != "auto"  # `WorldOptions` has chosen one
        super().__init__(options.ranks, options.threads, seconds, options.device)
        self._count = 0

    def start(self, kind: Callable[..., Any], *args: Any) -> Workers:
        """Makes an object of a class on every rank, from the rank's topology and further arguments."""
        self.call(_start, kind, args)
        self._count += 1
        return Workers(self, self._count - 1)


@contextmanager
def start_worlds(*options: WorldOptions) -> Iterator[list[World]]:
    """Starts several worlds together: on a CUDA machine a process takes ten seconds to load fbgemm's libraries.

    The worlds end with this context, or before with their own.
    """
    with ExitStack() as stack:
        worlds = [stack.enter_context(World(one)) for one in options]
        for world in worlds:
            world.call(_connected)
        yield worlds


def timed(topology: Topology, function: Callable[..., Result], *args: Any) -> tuple[float, Result]:
    """Seconds until the slowest rank has run a function, and this rank's result; collective."""
    devices.synchronize(topology.device)
    dist.barrier()
    begin = time.perf_counter()
    result = function(*args)
    devices.synchronize(topology.device)
    dist.barrier()
    return time.perf_counter() - begin, result


def take_turns(repeats: int, *sides: Callable[[], Result]) -> list[list[Result]]:
    """Runs each side once per repeat, every second time in reverse order; returns the results of each side."""
    results: list[list[Result]] = [[] for _ in sides]
    for repeat in range(repeats):
        for index in range(len(sides))[:: -1 if repeat % 2 else 1]:
            results[index].append(sides[index]())
    return results


_workers: list[Any] = []  # of this rank's process


def _connected(topology: Topology) -> None:
    pass


def _start(topology: Topology, kind: Callable[..., Any], args: tuple[Any, ...]) -> None:
    _workers.append(kind(topology, *args))


def _call(topology: Topology, index: int, method: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return method(_workers[index], *args)


def _timed_call(topology: Topology, index: int, method: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    return timed(topology, method, _workers[index], *args)
