"""Rank and world size as set by DeepSpeed's launcher, torchrun or Slurm's srun."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

_PORT = 29500  # torch's own default
_SLURM_PORTS = range(15000, 29000)  # below the ports that Linux assigns to outgoing connections
_STEP = {
    *("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
    *("SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST"),
}


@dataclass(frozen=True)
class RankInfo:
    """One process among those of its job.

    Args:
        rank: 0 to ``world_size - 1``.
        world_size: the number of processes.
        local_rank: the rank among the processes of this machine.
        local_world_size: the number of processes on this machine.
        address: where rank 0 listens.
        port: where rank 0 listens; 0 for any free one, if no other process has to know it.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """The variables that torch, TorchRec and DeepSpeed read."""
        variables = {
            "RANK": self.rank,
            "WORLD_SIZE": self.world_size,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_world_size,
            "MASTER_ADDR": self.address,
            "MASTER_PORT": self.port,
        }
        return {name: str(value) for name, value in variables.items()}


def rank_info(environment: Mapping[str, str] = os.environ) -> RankInfo:
    """Reads the rank of this process from its environment.

    RANK and the related variables of DeepSpeed's launcher and torchrun take precedence over those of an srun step. The
    variables of a Slurm job alone do not count: a batch script is not a rank. Nor does WORLD_SIZE without RANK. RANK=0
    without WORLD_SIZE is alone. MASTER_ADDR and MASTER_PORT count if there are other ranks; without them, rank 0
    listens on the first node of the step, at a port derived from the job id.

    Returns:
        The rank; rank 0 of 1 if no launcher set any variable.

    Raises:
        ValueError: naming the variable and its value, if they make no rank.
    """
    if "RANK" in environment:
        info = _launched(environment)
    elif environment.keys() >= _STEP:
        info = RankInfo(
            rank=int(environment["SLURM_PROCID"]),
            world_size=int(environment["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(environment["SLURM_LOCALID"]),
            local_world_size=_tasks(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment["SLURM_NODEID"])],
            address=first_host(environment["SLURM_STEP_NODELIST"]),
            port=_SLURM_PORTS[int(environment["SLURM_JOB_ID"]) % len(_SLURM_PORTS)],
        )
    else:
        info = RankInfo()
    if info.world_size == 1:  # it needs no address, and any left over may be that of nobody
        return replace(info, address=RankInfo.address, port=RankInfo.port)
    return replace(
        info,
        address=environment.get("MASTER_ADDR", info.address),
        port=_number(environment, "MASTER_PORT", info.port, range(1, 1 << 16)),
    )


def is_first_rank(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process prints what all ranks would; true if its variables make no rank."""
    try:
        return rank_info(environment).rank == 0
    except ValueError:
        return True


def variables_of_ranks(environment: Mapping[str, str] = os.environ) -> str:
    """The variables that make this process one rank among others, for a message: without them it is alone."""
    return "RANK WORLD_SIZE" if "RANK" in environment else "SLURM_STEP_NUM_TASKS"


def _launched(environment: Mapping[str, str]) -> RankInfo:
    """The rank by the variables of DeepSpeed's launcher and torchrun."""
    rank = _number(environment, "RANK", 0, range(1 << 31))
    world_size = _number(environment, "WORLD_SIZE", 1, range(1, 1 << 31))
    if rank >= world_size:
        size = f"WORLD_SIZE={world_size}" if "WORLD_SIZE" in environment else "WORLD_SIZE is not set"
        raise ValueError(f"RANK={rank}, but {size}: unset RANK if it is left over, or set both as a launcher does")
    # DeepSpeed's launcher calls it LOCAL_SIZE.
    local = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in environment else "LOCAL_SIZE"
    return RankInfo(
        rank=rank,
        world_size=world_size,
        local_rank=_number(environment, "LOCAL_RANK", 0, range(1 << 31)),
        # A lone rank has the machine for itself, whatever is left over.
        local_world_size=_number(environment, local, world_size, range(1, 1 << 31)) if world_size > 1 else 1,
        port=_PORT,
    )


def _number(environment: Mapping[str, str], name: str, default: int, possible: range) -> int:
    """The value of a variable, or the default if it is not set."""
    text = environment.get(name, f"{default}")
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) not in possible:
        most = f" and at most {possible[-1]}" if possible[-1] < 1 << 16 else ""
        expected = f"a number of at least {possible[0]}{most}"
        raise ValueError(f"{name}={text} is not {expected}: unset {name} if it is left over")
    return int(text)


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list: ``"gpu003"`` for ``"gpu[003-010,012],login1"``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else nodes)


def _tasks(tasks_per_node: str) -> list[int]:
    """The number of tasks of each node: ``[2, 2, 2, 1]`` for Slurm's ``"2(x3),1"``."""
    runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node)
    return [int(tasks) for tasks, nodes in runs for _ in range(int(nodes or 1))]
