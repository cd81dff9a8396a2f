"""New processes on this machine for ranks, started as fast as the device allows."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from dist_imsr import devices
from dist_imsr.launcher import RankInfo

_FORKED, _SPAWNED = multiprocessing.get_context("forkserver"), multiprocessing.get_context("spawn")
_FORKED.set_forkserver_preload(["dist_imsr.preloaded"])
_PATIENCE = 30.0  # seconds for the ranks of a group to notice that one of them is gone


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


class RankGroup:
    """The ranks of one command on this machine, started at once; what they print goes to a file.

    Ctrl-C in the terminal reaches only the process that started them.

    Args:
        command: a module's function that returns the exit status of a rank.
        args: its arguments, which must be picklable.
        ranks: how many.
        log: the file; text is appended.
        device: index of the first rank's device; the other ranks have the next ones.
        threads: of each rank; by default, the ranks share the cores.
        orphaned: the signal that the ranks get when the process that started them is gone.
    """

    def __init__(
        self,
        command: Callable[..., int],
        args: tuple[Any, ...],
        ranks: int,
        log: Path,
        *,
        device: int = 0,
        threads: int | None = None,
        orphaned: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.log, self.device, self._began = log, device, time.monotonic()
        self.log_start = log.stat().st_size if log.exists() else 0
        """Where the text of these ranks begins in the file."""
        self.failure: int | None = None
        """The exit status of the first rank that failed, below 0 for a signal."""
        self._deadline = float("inf")
        port = free_port() if ranks > 1 else 0  # a single process takes any
        self.processes = []
        for rank in range(ranks):
            environment = RankInfo(rank, ranks, device + rank, ranks, port=port).environment
            arguments = (command, args, environment, log, threads, orphaned)
            process = new_process(_rank, arguments, cuda=devices.device_count() > 0)
            process.start()
            self.processes.append(process)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def stop(self) -> None:
        """Sends SIGTERM to the ranks."""
        for process in self.processes:
            process.terminate()

    def ended(self) -> bool:
        """Whether all ranks have ended; some time after one has failed, the others are killed."""
        statuses = [process.exitcode for process in self.processes]
        if self.failure is None:
            self.failure = next((status for status in statuses if status), None)
            if self.failure is not None:
                self._deadline = time.monotonic() + _PATIENCE
        if time.monotonic() > self._deadline:
            for process in self.processes:
                process.kill()
        return None not in statuses

    def failure_reason(self, name: str) -> str:
        """Why a rank failed, in one line.

        Args:
            name: of the command, which begins its messages.
        """
        assert self.failure is not None
        text = self.log.read_bytes()[self.log_start :].decode(errors="replace") if self.log.exists() else ""
        return failure_reason(name, self.failure, text)


def wait_for_any(groups: Iterable[RankGroup], seconds: float) -> None:
    """Waits until a rank of some groups ends, or for some time."""
    wait([process.sentinel for group in groups for process in group.processes if process.is_alive()], seconds)


def failure_reason(name: str, status: int, log: str) -> str:
    """Why a command failed, in one line: its own message if the log has one, else the last line.

    Args:
        name: of the command, which begins its messages.
        status: of its first rank that failed; below 0 for a signal.
        log: its text.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    prefix = f"{name}: "
    own = [line.removeprefix(prefix) for line in lines if line.startswith(prefix) and "another rank" not in line]
    message = (own or lines or ["its log is empty"])[-1][:400]
    if status < 0:
        memory = " (out of memory?)" if -status == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-status).name}{memory}; its last line: {message}"
    return f"{message} (status {status})"


def _rank(
    command: Callable[..., int],
    args: tuple[Any, ...],
    environment: dict[str, str],
    log: Path,
    threads: int | None,
    orphaned: signal.Signals,
) -> None:
    """One rank's process."""
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    os.environ.update(environment)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = f"{threads}"
        torch.set_num_threads(threads)  # the variable was read before this process was forked
    threading.Thread(target=_end_with_parent, args=(orphaned,), daemon=True).start()
    sys.exit(command(*args))


def _end_with_parent(orphaned: signal.Signals) -> None:
    """Sends a signal to this rank when the process that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), orphaned)
