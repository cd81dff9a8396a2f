"""New processes on this machine for ranks, started as fast as the device allows."""

import multiprocessing
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

_FORKED, _SPAWNED = multiprocessing.get_context("forkserver"), multiprocessing.get_context("spawn")
_FORKED.set_forkserver_preload(["dist_imsr.preloaded"])


def new_process(target: Callable[..., None], args: tuple[Any, ...], cuda: bool) -> BaseProcess:
    """Makes a daemon process, not started yet.

    Ranks on the CPU are forked from a server process that has imported the libraries once. The libraries initialize
    CUDA there, and a process that is forked afterwards cannot use CUDA; those ranks are spawned.

    Args:
        target: a module's function.
        args: its arguments, which must be picklable.
        cuda: whether the process uses a CUDA device.
    """
    make: Callable[..., BaseProcess] = _SPAWNED.Process if cuda else _FORKED.Process
    return make(target=target, args=args, daemon=True)


def free_port() -> int:
    """Finds a port of this machine on which no process listens, for rank 0 of a new world."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
