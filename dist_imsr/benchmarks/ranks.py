"""Real ranks on this machine that serve several calls and are idle between them."""

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Literal, Self

from dist_imsr.launcher import RankInfo
from dist_imsr.processes import free_port, new_process

DeviceType = Literal["cpu", "cuda"]


class LocalRanks:
    """A world of gloo or NCCL ranks, one process each; a context manager that ends them.

    Args:
        world_size: number of ranks.
        threads: torch's threads in each of them.
        seconds: limit of one call.
        device: of the ranks; on CUDA each has its own.
    """

    def __init__(self, world_size: int, threads: int = 1, seconds: float = 600.0, device: DeviceType = "cpu") -> None:
        self.world_size, self._seconds = world_size, seconds
        port = free_port()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            here, there = multiprocessing.Pipe()
            process = new_process(_serve, (rank, world_size, threads, seconds, port, there), cuda=device == "cuda")
            with nullcontext() if device == "cuda" else _no_cuda():
                process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def call(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Calls a module's function on every rank.

        Args:
            function: takes the rank's topology, then ``args``.
            args: anything that can be pickled.

        Returns:
            The function's results, by rank.

        Raises:
            RuntimeError: with the traceback of the first rank that failed, or naming those that died or took too long.
        """
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((function, args)))
        results: list[Any] = [None] * self.world_size
        waiting = set(range(self.world_size))
        while waiting:
            ready = wait([self._pipes[rank] for rank in waiting], self._seconds)
            if not ready:
                raise RuntimeError(f"ranks {sorted(waiting)} did not answer within {self._seconds:.0f} seconds")
            for rank in [rank for rank in waiting if self._pipes[rank] in ready]:
                waiting.remove(rank)
                try:
                    error, results[rank] = pickle.loads(self._pipes[rank].recv_bytes())
                except EOFError:
                    error = "it died without an answer"
                if error:
                    raise RuntimeError(f"rank {rank} of {self.world_size} failed:\n{error}")
        return results

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.join()


@contextmanager
def _no_cuda() -> Iterator[None]:
    """Processes that are started inside see no CUDA devices, and DeepSpeed takes the host as their accelerator."""
    variables = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


def _serve(rank: int, world_size: int, threads: int, seconds: float, port: int, pipe: Connection) -> None:
    """One rank: connects at its first call, then answers until it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    import torch

    from dist_imsr.distributed.topology import connect

    os.environ.update(RankInfo(rank, world_size, rank, world_size, port=port).environment, OMP_NUM_THREADS=str(threads))
    torch.set_num_threads(threads)  # the variable was read before this process was forked
    topology = None
    while True:
        try:
            function, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        answer: tuple[str | None, Any]
        try:
            topology = topology or connect(seconds)
            answer = None, function(topology, *args)
        except BaseException:
            answer = traceback.format_exc(), None
        # Plain bytes: multiprocessing's own pickle would share tensors, whose memory ends with this rank.
        pipe.send_bytes(pickle.dumps(answer))
