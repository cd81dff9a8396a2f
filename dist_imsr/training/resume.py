"""Chooses the checkpoint that a run resumes from."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.command import Refusal
from dist_imsr.distributed.topology import Topology
from dist_imsr.files import OtherFormat
from dist_imsr.strategies.progress import Progress
from dist_imsr.training.checkpoint import name_of, newest_first
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.identity import differences, identity, pretraining
from dist_imsr.training.storage import Stored

logger = logging.getLogger(__name__)
_PRETRAINED = name_of(1, 0, 0)
_RESTARTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")


def as_restarted(config: TrainConfig) -> TrainConfig:
    """Makes a command resume when a cluster restarts it, whatever its keys ``resume`` and ``overwrite``.

    Args:
        config: of the command.

    Returns:
        The configuration to use: the same if this is not a restart.
    """
    if not any(int(os.environ.get(name) or 0) for name in _RESTARTS) or not config.checkpoint.enabled:
        return config
    if config.overwrite:
        logger.info("this job was restarted: it resumes, and overwrites nothing")
    return replace(config, overwrite=False, resume="auto" if config.resume == "never" else config.resume)


class Remaining(NamedTuple):
    """What a run has left to do.

    Args:
        spans: the spans to train, in order.
        tests_first: whether the last trained span is tested before, on ``spans.start``.
    """

    spans: range
    tests_first: bool

    @property
    def nothing(self) -> bool:
        """Whether the run has ended."""
        return not self.spans and not self.tests_first


class CheckpointCandidates:
    """The checkpoints that a run may resume from, validated by their manifests alone.

    Those of the run's own folder take precedence over one elsewhere that ``resume`` names, which is for the first
    start. If that one was saved right after pre-training, only the keys that pre-training reads must agree.

    Args:
        config: the whole tree.
        dataset: the prepared data.

    Raises:
        ValueError: if none is sound, if one is of another run, another version or other data, or if those of the
            folder are newer than the one that ``resume`` names among them.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset) -> None:
        folder = config.run_dir / "checkpoints"
        named = None if config.resume in ("auto", "never") else Path(config.resume)
        if config.overwrite and named and named.resolve().is_relative_to(config.run_dir.resolve()):
            raise ValueError(f"overwrite: it would remove {named}, which resume names; name another run_dir")
        self.own = [] if config.overwrite or config.resume == "never" else newest_first(folder)
        """The checkpoints of the run's folder, the newest first."""
        self.sound: list[Stored] = []
        self.damaged: dict[Path, str] = {}
        """The errors of the checkpoints that were passed over."""
        inside = named is not None and named.resolve().parent == folder.resolve()
        if named and inside and self.own and named.name != self.own[0].name:
            raise ValueError(
                f"resume: the newest checkpoint of {folder} is {self.own[0].name}, and not {named.name}: pass --resume "
                "auto, name another run_dir, or remove the newer ones"
            )
        for path in self.own or ([named] if named else []):
            try:
                self.sound.append(Stored(path))
            except OtherFormat:
                if not self.sound:
                    raise
            except ValueError as error:
                self.damaged[path] = str(error)
        if self.damaged and not self.sound:
            raise ValueError(self.refusal)
        here = identity(config)
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
            _refuse_other_spans(stored, dataset)
        progress = self.sound[0].manifest["progress"] if self.sound else vars(Progress())
        first, last = progress["span"], config.training.last(dataset.spans)
        untested = progress["untested"] is not None and first < dataset.spans
        self.remaining = Remaining(range(first, last + 1), tests_first=untested)
        """What is left after the newest of `sound`."""

    @property
    def refusal(self) -> str:
        """The error message if no checkpoint is sound."""
        reasons = "; ".join(self.damaged.values())
        remedy = "Name another run_dir, or pass --overwrite true" if self.own else "Name a checkpoint's folder"
        return f"resume: no checkpoint is sound: {reasons}. {remedy}"

    def choose(self, verify: bool, topology: Topology, group: dist.ProcessGroup) -> Stored | None:
        """Chooses the newest checkpoint whose files are sound; collective.

        Args:
            verify: whether to compare checksums, each rank those of its share of the files.
            topology: this rank's place.
            group: a gloo group.

        Returns:
            The checkpoint; None if there is none.

        Raises:
            Refusal: if there are checkpoints but none is sound, if the ranks see different ones, or if a disk fails.
        """

        def gather(mine: Any) -> list[Any]:
            ranks = [None] * topology.world_size
            dist.all_gather_object(ranks, mine, group)
            return ranks

        seen = gather([str(stored.folder) for stored in self.sound])
        if any(folders != seen[0] for folders in seen):
            raise Refusal(f"run_dir: ranks see different checkpoints ({seen}): all must share one file system")
        for stored in self.sound:
            faults = gather(_fault(stored, topology) if verify else (None, None))
            damage, failure = (next(filter(None, messages), None) for messages in zip(*faults, strict=True))
            if failure:
                raise Refusal(f"resume: {stored.folder} cannot be read: {failure}")
            if not damage:
                return stored
            self.damaged[stored.folder] = damage
        if self.damaged:
            raise Refusal(self.refusal)
        return None


def _refuse_other_spans(stored: Stored, dataset: Dataset) -> None:
    """Compares the spans that a checkpoint has read with those of the data, one by one."""
    read = stored.manifest["span_digests"]
    remedy = "name the data of that run with --data.path, or train from the beginning in another run_dir"
    for span, (there, here) in enumerate(zip(read, dataset.digests, strict=False)):
        if there != here:
            raise ValueError(
                f"resume: span {span} of {dataset.path} has changed since {stored.folder} read it: {remedy}"
            )
    if len(read) > dataset.spans:
        raise ValueError(
            f"resume: {stored.folder} has read {len(read)} spans, and {dataset.path} has {dataset.spans}: {remedy}"
        )


def _fault(stored: Stored, topology: Topology) -> tuple[str | None, str | None]:
    """The messages of a damaged file and of a failing disk, None without such an error."""
    try:
        stored.verify(topology.rank, topology.world_size)
    except ValueError as error:
        return str(error), None
    except OSError as error:
        return None, str(error)
    return None, None
