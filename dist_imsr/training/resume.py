"""From which checkpoint a run goes on."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.command import Refusal
from dist_imsr.distributed.topology import Topology
from dist_imsr.files import NewerFormat
from dist_imsr.training.checkpoint import name_of, newest_first
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.identity import differences, identity, pretraining
from dist_imsr.training.storage import Stored

logger = logging.getLogger(__name__)
_PRETRAINED = name_of(1, 0, 0)
_RESTARTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")


def as_started(config: TrainConfig) -> TrainConfig:
    """What a command means when a cluster starts it again: to go on.

    Args:
        config: as the command tells it.

    Returns:
        The same, but that nothing is begun anew by a restart.
    """
    if not any(int(os.environ.get(name) or 0) for name in _RESTARTS) or not config.checkpoint.enabled:
        return config
    if config.overwrite:
        logger.info("this job was started again: it goes on, and overwrites nothing")
    return replace(config, overwrite=False, resume="auto" if config.resume == "never" else config.resume)


class CheckpointCandidates:
    """The checkpoints from which a run could go on, judged by their manifests alone.

    Those of the run's own folder come before one that ``resume`` names elsewhere, which is for the first start. Where
    that one stands between the spans 0 and 1, it needs to agree in what pre-training reads and in nothing else.

    Args:
        config: the whole tree.
        dataset: the prepared data.
        device: where the run trains.

    Raises:
        ValueError: if none is sound, if one is of another run or newer than this version, or if those of the folder
            are newer than the one that ``resume`` names among them.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset, device: torch.device) -> None:
        folder = config.run_dir / "checkpoints"
        named = None if config.resume in ("auto", "never") else Path(config.resume)
        if config.overwrite and named and named.resolve().is_relative_to(config.run_dir.resolve()):
            raise ValueError(f"overwrite: it would remove {named}, which resume names; name another run_dir")
        self.own = [] if config.overwrite or config.resume == "never" else newest_first(folder)
        """The checkpoints of the run's folder, from the newest on."""
        self.sound: list[Stored] = []
        self.damaged: dict[Path, str] = {}
        """Why checkpoints were passed over."""
        inside = named is not None and named.resolve().parent == folder.resolve()
        if named and inside and self.own and named.name != self.own[0].name:
            raise ValueError(
                f"resume: the newest checkpoint of {folder} is {self.own[0].name}, and not {named.name}: pass --resume "
                "auto, name another run_dir, or remove the newer ones"
            )
        for path in self.own or ([named] if named else []):
            try:
                self.sound.append(Stored(path))
            except NewerFormat:
                if not self.sound:
                    raise
            except ValueError as error:
                self.damaged[path] = str(error)
        if self.damaged and not self.sound:
            raise ValueError(self.refusal)
        here = identity(config, dataset.digest, device)
        for stored in self.sound:
            there, wanted = stored.manifest.get("identity", {}), here
            if not self.own and not inside and stored.folder.name == _PRETRAINED:
                there, wanted = pretraining(there), pretraining(here)
            wrong = differences(there, wanted)
            if wrong:
                raise ValueError(
                    f"resume: {stored.folder} is of another run: {'; '.join(wrong)}. Pass the keys of that run, or "
                    "name another run_dir"
                )

    @property
    def refusal(self) -> str:
        """What is told where none is sound."""
        reasons = "; ".join(self.damaged.values())
        remedy = "Name another run_dir, or pass --overwrite true" if self.own else "Name a checkpoint's folder"
        return f"resume: no checkpoint is sound: {reasons}. {remedy}"

    def choose(self, verify: bool, topology: Topology, group: dist.ProcessGroup) -> Stored | None:
        """Takes the newest one whose files are sound; collective.

        Args:
            verify: whether checksums are compared, each rank reading its share.
            topology: this rank's place.
            group: speaks gloo.

        Returns:
            The checkpoint; None if there is none.

        Raises:
            Refusal: if there are some, but none is sound; if the ranks do not see the same, or a disk fails.
        """

        def everywhere(mine: Any) -> list[Any]:
            said = [None] * topology.world_size
            dist.all_gather_object(said, mine, group)
            return said

        seen = everywhere([str(stored.folder) for stored in self.sound])
        if any(one != seen[0] for one in seen):
            raise Refusal(f"run_dir: ranks see different checkpoints ({seen}): all must share one file system")
        for stored in self.sound:
            told = everywhere(_unsound(stored, topology) if verify else None)
            failed, wrong = (next((text for kind, text in filter(None, told) if kind == one), None) for one in "fd")
            if failed:
                raise Refusal(f"resume: {stored.folder} cannot be read: {failed}")
            if not wrong:
                return stored
            self.damaged[stored.folder] = wrong
        if self.damaged:
            raise Refusal(self.refusal)
        return None


def _unsound(stored: Stored, topology: Topology) -> tuple[str, str] | None:
    """A damaged file (d), or a disk that fails (f)."""
    try:
        stored.verify(topology.rank, topology.world_size)
    except ValueError as error:
        return "d", str(error)
    except OSError as error:
        return "f", str(error)
    return None
