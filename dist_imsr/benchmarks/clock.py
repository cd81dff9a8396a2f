"""Seconds that a world of ranks takes."""

import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from dist_imsr import devices
from dist_imsr.distributed.topology import Topology


def timed(topology: Topology, act: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """Seconds until the slowest rank has done something; collective.

    Args:
        topology: this rank's place.
        act: what is done.
        args: its arguments.

    Returns:
        The seconds, and what ``act`` returned on this rank.
    """
    devices.synchronize(topology.device)
    dist.barrier()
    begin = time.perf_counter()
    told = act(*args)
    devices.synchronize(topology.device)
    dist.barrier()
    return time.perf_counter() - begin, told
