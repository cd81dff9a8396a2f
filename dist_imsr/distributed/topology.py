"""This process's rank and device, and the few collectives that are called outside the libraries."""

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
from dist_imsr.distributed import library_internals
from dist_imsr.distributed.command import Refusal
from dist_imsr.distributed.rendezvous import open_store
from dist_imsr.launcher import RankInfo, rank_info


@dataclass(frozen=True)
class Topology:
    """One rank among all.

    Args:
        rank: this process, 0 to ``world_size - 1``.
        world_size: the number of ranks.
        local_world_size: the number of ranks on this machine.
        device: of this rank's tensors.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device

    def buckets(self, n_buckets: int) -> range:
        """The consecutive buckets of users that this rank owns.

        Args:
            n_buckets: the number of buckets in the prepared data.

        Returns:
            The bucket numbers.

        Raises:
            ValueError: if there are fewer buckets than ranks.
        """
        if n_buckets < self.world_size:
            raise ValueError(
                f"{n_buckets} buckets of users cannot be split over {self.world_size} ranks: "
                f"prepare the data with --buckets {self.world_size} or more"
            )
        return range(self.rank * n_buckets // self.world_size, (self.rank + 1) * n_buckets // self.world_size)

    def set_timeout(self, seconds: float) -> None:
        """Sets how long this rank waits for the others in each later collective; not collective.

        Args:
            seconds: after which the collective fails.
        """
        library_internals.set_timeout(seconds)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sums a small tensor over ranks, in place.

        Args:
            values: any shape, on any device; the same shape on every rank.

        Returns:
            ``values``, summed.
        """
        on_device = values.to(self.device)
        dist.all_reduce(on_device)
        return values.copy_(on_device)

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

        Every rank sends as many bytes as the rank with the most.

        Args:
            columns: of any types, on this rank's device; the same types and further dimensions on every rank.

        Returns:
            Each rank's columns, in the order of ranks.
        """
        lengths = self.gather(torch.tensor([len(column) for column in columns], device=self.device)).tolist()
        row_bytes = [math.prod(column.shape[1:]) * column.element_size() for column in columns]
        # Bytes of every rank's columns, each padded to a multiple of 8, so that any type may be viewed there.
        sizes = [[-(-length * size // 8) * 8 for length, size in zip(each, row_bytes, strict=True)] for each in lengths]
        raw = [column.contiguous().flatten().view(torch.uint8) for column in columns]
        aligned = torch.cat([pad(one, (0, -len(one) % 8)) for one in raw])
        longest = max(8, *map(sum, sizes))  # without any bytes, a view would begin at an odd place
        packed = self.gather(pad(aligned, (0, longest - len(aligned))))
        return [
            [
                part[: length * size].view(column.dtype).view(length, *column.shape[1:])
                for part, length, size, column in zip(
                    packed[rank, : sum(sizes[rank])].split(sizes[rank]), lengths[rank], row_bytes, columns, strict=True
                )
            ]
            for rank in range(self.world_size)
        ]


def read_topology() -> Topology:
    """Reads this process's rank from its launcher's environment, and chooses its device; connects nothing.

    Raises:
        ValueError: if the machine has more than one CUDA device, but fewer than ranks; or for variables that make no
            rank, naming the variable.
    """
    info = _visible_rank_info()
    device = torch.device("cuda", info.local_rank) if devices.device_count() else torch.device("cpu")
    return Topology(info.rank, info.world_size, info.local_world_size, device)


def _visible_rank_info() -> RankInfo:
    """The rank, with local numbers that fit the devices that this process sees."""
    info, count = rank_info(), devices.device_count()
    if count == 1 and (info.local_world_size > 1 or info.local_rank):
        # Slurm may show each rank only its own device, and LOCAL_RANK may be left over. The libraries expect as many
        # devices as local ranks, so such a rank counts as alone on its machine.
        return replace(info, local_rank=0, local_world_size=1)
    if 1 < count < info.local_world_size:
        raise ValueError(f"{info.local_world_size} ranks of a machine cannot share {count} GPUs: start one for each")
    if 1 < count <= info.local_rank:
        raise ValueError(f"LOCAL_RANK={info.local_rank} has no GPU among {count}: unset it if it is left over")
    return info


def connect(timeout_seconds: float = 1800.0) -> Topology:
    """Joins the process group of all ranks: NCCL for CUDA tensors, gloo for the host's.

    Args:
        timeout_seconds: how long the ranks may wait for each other, at the start and in a collective, before the job
            ends.

    Raises:
        NotStarted: on this rank, if it cannot meet the others.
        Refusal: on all ranks, if two ranks share a GPU, or some have one and others none.
    """
    quiet_libraries()
    topology, info = read_topology(), _visible_rank_info()
    store = open_store(info, timeout_seconds)
    os.environ.update(info.environment)  # no launcher sets all variables that the libraries read
    devices.setup_device(topology.device)
    on_cuda = devices.is_cuda(topology.device)
    # Without ``device_id``, so that NCCL starts at the first tensor, after check_devices has found a GPU for each rank.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        store=store,
        rank=topology.rank,
        world_size=topology.world_size,
        timeout=timedelta(seconds=timeout_seconds),
    )
    initialize_deepspeed("nccl" if on_cuda else "gloo")
    ranks: list[Any] = [None] * topology.world_size
    own = socket.gethostname(), os.sched_getaffinity(0), devices.device_uuid(topology.device)
    dist.all_gather_object(ranks, own)
    check_devices([(machine, device) for machine, _, device in ranks])
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(thread_count(topology.rank, [(machine, cores) for machine, cores, _ in ranks]))
    return topology


def check_devices(places: Sequence[tuple[str, str | None]]) -> None:
    """Refuses two ranks on one GPU, and a mix of ranks with and without GPUs.

    DeepSpeed's launcher starts the requested number of ranks, however many GPUs there are.

    Args:
        places: the machine of every rank, and the UUID of its GPU or None.

    Raises:
        Refusal: with two ranks and their machines.
    """
    first: dict[str | None, int] = {}
    for rank, (machine, device) in enumerate(places):
        other = first.setdefault(device, rank)
        if device is not None and other != rank:
            raise Refusal(
                f"ranks {other} and {rank} share a GPU of {machine}: start one rank for each GPU, or all on the CPU "
                "with DS_ACCELERATOR=cpu"
            )
    if None in first and len(first) > 1:
        one, other = sorted((first.pop(None), min(first.values())))
        raise Refusal(
            f"ranks {one} of {places[one][0]} and {other} of {places[other][0]} differ: one has a GPU, the other none; "
            "set DS_ACCELERATOR=cpu on every machine or on none"
        )


def thread_count(rank: int, cores: Sequence[tuple[str, set[int]]]) -> int:
    """A rank's share of the cores that it may run on.

    Ranks of one machine whose threads share cores wait for each other inside every operator. DeepSpeed's launcher
    lets every rank use all cores; Slurm may bind each rank to its own.

    Args:
        rank: that needs its number of threads.
        cores: the machine of every rank, and the cores that it may run on.

    Returns:
        At least 1.
    """
    machine, own = cores[rank]
    return max(1, len(own) // sum(one == machine and bool(own & theirs) for one, theirs in cores))


def initialize_deepspeed(backend: str) -> None:
    """Makes DeepSpeed use the existing process group.

    Args:
        backend: DeepSpeed's name for it.
    """
    library_internals.disable_shared_memory_kernel()
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    library_internals.share_world_group()


def quiet_libraries() -> None:
    """Sends the libraries' warnings to this project's log, without those that are for their own developers."""
    deepspeed.utils.logger.setLevel("WARNING")
    deepspeed.utils.logger.handlers.clear()  # it has its own
    deepspeed.utils.logger.propagate = True
    for noisy in ("torchrec.distributed.planner", "torch.fx._symbolic_trace"):
        logging.getLogger(noisy).setLevel("ERROR")
    for library in ("torch", "torchrec", "dist_imsr"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)
