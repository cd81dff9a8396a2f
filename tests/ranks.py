"""Runs a function on real gloo ranks."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

# Each test's ranks are forked from one process that has imported the stack once.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["dist_imsr.training.trainer"])


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, seconds: float = 120) -> list[Any]:
    """Calls ``function(topology, *args)`` on every rank of a new world and returns the results by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    receivers, processes = {}, []
    for rank in range(world_size):
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        process = _CONTEXT.Process(target=_rank, args=(rank, world_size, port, sender, function, args), daemon=True)
        process.start()
        sender.close()
        receivers[receiver] = rank
        processes.append(process)
    results: list[Any] = [None] * world_size
    try:
        while receivers:
            ready = wait(list(receivers), seconds)
            if not ready:
                raise TimeoutError(f"ranks {sorted(receivers.values())} said nothing for {seconds} seconds")
            for receiver in ready:
                rank = receivers.pop(receiver)
                error, results[rank] = pickle.loads(receiver.recv_bytes())
                if error:
                    raise AssertionError(f"rank {rank} of {world_size} failed:\n{error}")
    finally:
        for process in processes:
            process.kill()
            process.join()
    return results


def _rank(
    rank: int, world_size: int, port: int, sender: Connection, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    import torch

    from dist_imsr.distributed.topology import connect

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    try:
        said = None, function(connect(60), *args)
    except BaseException:
        said = traceback.format_exc(), None
    sender.send_bytes(pickle.dumps(said))  # multiprocessing's own pickle would share tensors that die with this rank
