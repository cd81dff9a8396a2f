"""What started this process tells it of its place: DeepSpeed's launcher, torchrun, Slurm's srun, or nobody."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

_PORT = 29500  # torch's own default
_SLURM_PORTS = range(15000, 29000)  # below those that Linux gives to connections
_STEP = {
    *("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
    *("SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST"),
}


@dataclass(frozen=True)
class RankInfo:
    """One process among those of its job.

    Args:
        rank: its number, 0 to ``world_size - 1``.
        world_size: how many there are.
        local_rank: its number among those of its machine.
        local_world_size: how many its machine has.
        address: where rank 0 listens.
        port: on which it does; 0 for any that is free, where nobody else has to know.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    address: str = "127.0.0.1"
    port: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which torch, TorchRec and DeepSpeed know the place."""
        told = {
            "RANK": self.rank,
            "WORLD_SIZE": self.world_size,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_world_size,
            "MASTER_ADDR": self.address,
            "MASTER_PORT": self.port,
        }
        return {name: str(value) for name, value in told.items()}


def read_rank_info(environment: Mapping[str, str] = os.environ) -> RankInfo:
    """Reads the place of a process.

    RANK and its kin, which DeepSpeed's launcher and torchrun set, come before the variables of a step of srun. Those
    of a Slurm job alone say nothing: its script is not a rank. MASTER_ADDR and MASTER_PORT always count; else rank 0
    listens on the first node of the step, on a port that the job's number gives.

    Args:
        environment: the variables.

    Returns:
        The place; alone where nobody tells.
    """
    if "RANK" in environment:
        told = RankInfo(
            rank=int(environment["RANK"]),
            world_size=(world_size := int(environment.get("WORLD_SIZE", "1"))),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            # DeepSpeed's launcher calls it LOCAL_SIZE.
            local_world_size=int(environment.get("LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", world_size))),
            port=_PORT,
        )
    elif environment.keys() >= _STEP:
        told = RankInfo(
            rank=int(environment["SLURM_PROCID"]),
            world_size=int(environment["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(environment["SLURM_LOCALID"]),
            local_world_size=_tasks(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment["SLURM_NODEID"])],
            address=first_host(environment["SLURM_STEP_NODELIST"]),
            port=_SLURM_PORTS[int(environment["SLURM_JOB_ID"]) % len(_SLURM_PORTS)],
        )
    else:
        told = RankInfo()
    near = told if told.world_size > 1 else RankInfo()
    address, port = environment.get("MASTER_ADDR", near.address), int(environment.get("MASTER_PORT", near.port))
    return replace(told, address=address, port=port)


def first_host(nodes: str) -> str:
    """The first of the hosts that a Slurm node list names.

    Args:
        nodes: for example ``"gpu[003-010,012],login1"``.

    Returns:
        The name, here ``"gpu003"``.
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else nodes)


def _tasks(each: str) -> list[int]:
    """The tasks of every node, of Slurm's ``"2(x3),1"``."""
    runs = re.findall(r"(\d+)(?:\(x(\d+)\))?", each)
    return [int(tasks) for tasks, nodes in runs for _ in range(int(nodes or 1))]
