"""New processes on this machine, for ranks: as fast to start as the device allows."""

import multiprocessing
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

_FORKED, _SPAWNED = multiprocessing.get_context("forkserver"), multiprocessing.get_context("spawn")
_FORKED.set_forkserver_preload(["dist_imsr.preloaded"])


def new_process(target: Callable[..., None], args: tuple[Any, ...], cuda: bool) -> BaseProcess:
    """A process that is not started yet and ends with this one.

    Ranks on the host are forked from one process that has imported the stack once. It has looked for CUDA devices, as
    the stack does, and what is forked from such a process cannot work on them.

    Args:
        target: a module's function.
        args: for it, anything that can be pickled.
        cuda: whether it works on a CUDA device.

    Returns:
        The process.
    """
    make: Callable[..., BaseProcess] = _SPAWNED.Process if cuda else _FORKED.Process
    return make(target=target, args=args, daemon=True)


def free_port() -> int:
    """Finds where rank 0 of a new world may listen on this machine.

    Returns:
        A port that nobody listens on.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
