"""This process's place in the world, and the few collectives that are spoken outside the libraries."""

import logging
import math
import os
import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch.nn.functional import pad

from dist_imsr import devices
from dist_imsr.distributed.command import Refusal
from dist_imsr.launcher import RankInfo, rank_info


@dataclass(frozen=True)
class Topology:
    """One rank's place.

    Args:
        rank: this process, 0 to ``world_size - 1``.
        world_size: the number of processes.
        local_world_size: the number of processes on this machine.
        device: where this rank's tensors live.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    def buckets(self, n_buckets: int) -> range:
        """The buckets of users that this rank owns: contiguous, so that its users are too.

        Args:
            n_buckets: the number of buckets in the prepared data.

        Returns:
            The bucket numbers.

        Raises:
            ValueError: if there are fewer buckets than ranks.
        """
        if n_buckets < self.world_size:
            raise ValueError(
                f"{n_buckets} buckets of users cannot be owned by {self.world_size} ranks: "
                f"prepare the data with --buckets {self.world_size} or more"
            )
        return range(self.rank * n_buckets // self.world_size, (self.rank + 1) * n_buckets // self.world_size)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sums a small tensor over ranks, in place.

        Args:
            values: any shape, on any device; the same shape on every rank.

        Returns:
            ``values``, summed.
        """
        moved = values.to(self.device)
        dist.all_reduce(moved)
        return values.copy_(moved)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Stacks a tensor of the same shape from every rank.

        Args:
            values: any shape, on this rank's device.

        Returns:
            ``[world_size, ...]``, in the order of ranks.
        """
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts)

    def gather_jagged(self, columns: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Gathers tensors whose first dimension differs between ranks, all in one exchange.

        Args:
            columns: of any types, on this rank's device; the same types and further dimensions on every rank. What
                travels is as long as the longest rank's.

        Returns:
            Each rank's columns, in the order of ranks.
        """
        lengths = self.gather(torch.tensor([len(column) for column in columns], device=self.device)).tolist()
        width = [math.prod(column.shape[1:]) * column.element_size() for column in columns]
        rows = [[-(-length * size // 8) * 8 for length, size in zip(each, width, strict=True)] for each in lengths]
        raw = [column.contiguous().flatten().view(torch.uint8) for column in columns]
        aligned = torch.cat([pad(one, (0, -len(one) % 8)) for one in raw])
        packed = self.gather(pad(aligned, (0, max(map(sum, rows)) - len(aligned))))
        return [
            [
                part[: length * size].view(column.dtype).view(length, *column.shape[1:])
                for part, length, size, column in zip(
                    packed[rank, : sum(rows[rank])].split(rows[rank]), lengths[rank], width, columns, strict=True
                )
            ]
            for rank in range(self.world_size)
        ]


def locate() -> Topology:
    """Reads this process's place from its launcher's environment, and finds its device.

    Returns:
        This rank's place, before anything is connected.

    Raises:
        ValueError: if its machine has CUDA devices, but not for all its ranks.
    """
    told = _seen()
    device = torch.device("cuda", told.local_rank) if devices.device_count() else torch.device("cpu")
    return Topology(told.rank, told.world_size, told.local_world_size, device)


def _seen() -> RankInfo:
    """The place, as far as this rank's devices show it."""
    told, count = rank_info(), devices.device_count()
    if count == 1 and told.local_world_size > 1:
        # Slurm may show each rank its own device alone; libraries that count devices by ranks take it for a machine.
        return replace(told, local_rank=0, local_world_size=1)
    if 1 < count < told.local_world_size:
        raise ValueError(f"{told.local_world_size} ranks of a machine cannot share {count} GPUs: start one for each")
    return told


def connect(timeout_seconds: float = 1800.0) -> Topology:
    """Joins the process group of the place that `locate` tells.

    Args:
        timeout_seconds: how long a collective may wait for a rank before the job ends.

    Returns:
        This rank's place. CUDA devices speak NCCL, everything on the host speaks gloo.

    Raises:
        Refusal: on all ranks, where two of them share a GPU, or some have one and others none.
    """
    quiet()
    topology = locate()
    os.environ.update(_seen().environment)  # no launcher sets all that the libraries read
    devices.setup_device(topology.device)
    on_cuda = devices.is_cuda(topology.device)
    # Without a device of its own, so that NCCL begins with the first tensor, once it is known to have a GPU each.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        rank=topology.rank,
        world_size=topology.world_size,
        timeout=timedelta(seconds=timeout_seconds),
    )
    join_deepspeed("nccl" if on_cuda else "gloo")
    ranks: list[Any] = [None] * topology.world_size
    own = socket.gethostname(), os.sched_getaffinity(0), devices.device_uuid(topology.device)
    dist.all_gather_object(ranks, own)
    check_devices([(machine, device) for machine, _, device in ranks])
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_of(topology.rank, [(machine, cores) for machine, cores, _ in ranks]))
    return topology


def check_devices(places: Sequence[tuple[str, str | None]]) -> None:
    """Refuses two ranks on one GPU, and ranks on the host beside ranks on GPUs.

    DeepSpeed's launcher starts as many ranks as it is asked for, however many GPUs there are.

    Args:
        places: the machine of every rank, and its GPU, None on the host.

    Raises:
        Refusal: naming two ranks and their machines.
    """
    first: dict[str | None, int] = {}
    for rank, (machine, device) in enumerate(places):
        other = first.setdefault(device, rank)
        if device is not None and other != rank:
            raise Refusal(
                f"ranks {other} and {rank} share a GPU of {machine}: start one rank for each GPU, or all on the host "
                "with DS_ACCELERATOR=cpu"
            )
    if None in first and len(first) > 1:
        one, other = sorted((first.pop(None), min(first.values())))
        raise Refusal(
            f"ranks {one} of {places[one][0]} and {other} of {places[other][0]} differ: one has a GPU, the other none; "
            "set DS_ACCELERATOR=cpu on every machine or on none"
        )


def threads_of(rank: int, cores: Sequence[tuple[str, set[int]]]) -> int:
    """A rank's share of the cores that it may run on.

    Ranks of one machine whose threads share cores wait for each other inside every operator. DeepSpeed's launcher
    leaves each rank all of them; Slurm may have bound each to its own.

    Args:
        rank: whose share.
        cores: the machine of every rank, and the cores that it may run on.

    Returns:
        How many threads, at least 1.
    """
    machine, own = cores[rank]
    return max(1, len(own) // sum(one == machine and bool(own & theirs) for one, theirs in cores))


def join_deepspeed(backend: str) -> None:
    """Lets DeepSpeed speak through the process group that there is.

    Args:
        backend: by DeepSpeed's name.
    """
    # DeepSpeed would compile a shared-memory kernel at the first launch, for inference only; training never calls it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    # DeepSpeed would clone the world, and wait half an hour for a rank whatever was asked for.
    deepspeed.utils.groups._WORLD_GROUP = dist.group.WORLD


def quiet() -> None:
    """Brings the libraries' warnings into this project's log, but for what they tell their own developers each time."""
    deepspeed.utils.logger.setLevel("WARNING")
    deepspeed.utils.logger.handlers.clear()  # it has its own
    deepspeed.utils.logger.propagate = True
    for chatter in ("torchrec.distributed.planner", "torch.fx._symbolic_trace"):
        logging.getLogger(chatter).setLevel("ERROR")
    for library in ("torch", "torchrec", "dist_imsr"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
