"""Checkpoints of a run: written while it goes on, pruned, and found again."""

import logging
import re
import shutil
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dist_imsr.config import require
from dist_imsr.distributed.command import Refusal
from dist_imsr.distributed.rows import Rows
from dist_imsr.distributed.topology import Topology
from dist_imsr.files import NewerFormat
from dist_imsr.training.storage import DISCARDED, PARTIAL, Stored, Tables, discard, store

logger = logging.getLogger(__name__)
_NAME = re.compile(r"span=(\d+)-epoch=(\d+)-step=(\d+)")
_DAMAGED = "damaged-"


@dataclass
class CheckpointConfig:
    """When the state of a run is kept, and how much of it.

    It is kept after every epoch and every span.

    Args:
        enabled: keep any.
        every_steps: also after so many steps of an epoch; 0 for never.
        keep_last: the newest ones that stay.
        keep_spans: of those between two spans, the newest ones that stay beside them.
        verify: compare checksums when a run resumes, and not only sizes.
    """

    enabled: bool = True
    every_steps: int = 1000
    keep_last: int = 2
    keep_spans: int = 1
    verify: bool = True

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "checkpoint.every_steps", self.every_steps, "at least 0")
        require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "at least 1")
        require(self.keep_spans >= 0, "checkpoint.keep_spans", self.keep_spans, "at least 0")


def name_of(span: int, epoch: int, step: int) -> str:
    """The name of a checkpoint's folder: names sort as a run passes them.

    Args:
        span: at hand.
        epoch: at hand.
        step: the next one of the epoch.

    Returns:
        The name.
    """
    return f"span={span:02d}-epoch={epoch:03d}-step={step:06d}"


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whether sound or not.

    Args:
        folder: which may be missing.

    Returns:
        Their folders.
    """
    return sorted((path for path in folder.glob("span=*") if _NAME.fullmatch(path.name)), key=_place, reverse=True)


def set_aside(damaged: Path) -> Path:
    """Renames a damaged checkpoint, so that it neither counts as one nor is lost.

    Args:
        damaged: its folder.

    Returns:
        Where it is now.
    """
    aside = damaged.with_name(f"{_DAMAGED}{damaged.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return damaged.rename(aside)


class Checkpoints:
    """Writes checkpoints of one run, one at a time, in a thread beside the training.

    Args:
        folder: where they stand.
        config: the section.
        topology: this rank's place.
        timeout_seconds: how long a rank may be waited for.
        identity: what makes the run the run that it is, for the manifests.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        topology: Topology,
        timeout_seconds: float,
        identity: dict[str, Any],
    ) -> None:
        self.folder, self.config, self.topology, self.identity = folder, config, topology, identity
        # A group of its own: its exchanges must not get between those of the training.
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
        self.refusal: str | None = None
        """Why the latest one was not written; None if it was."""
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._written: threading.Event | None = None
        if topology.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for left in (*folder.glob(f"{PARTIAL}*"), *folder.glob(f"{DISCARDED}*")):
                shutil.rmtree(left)

    def save(self, name: str, tensors: dict[str, Rows], tables: Tables, facts: dict[str, Any]) -> None:
        """Begins to write a checkpoint, once the one before is written; collective.

        Args:
            name: of its folder.
            tensors: this rank's rows; nobody may change them any more.
            tables: this rank's, by their path.
            facts: what rank 0 adds to the manifest.
        """
        self.wait()
        if self._thread is not None:
            self._thread.join()
        written = self._written = threading.Event()

        def work() -> None:
            try:
                told = {"identity": self.identity, **facts}
                store(self.folder / name, tensors, tables, told, self.topology.rank, self.group)
                self.refusal = None
                written.set()  # nobody waits for what follows but the next save
                if self.topology.rank == 0:
                    self._prune()
            except OSError as error:
                self.refusal = str(error)
            except BaseException as error:  # raised again by whoever waits
                self._error = error
            finally:
                written.set()

        # No daemon: whatever ends the process, it lets go of the exchange that it is in.
        self._thread = threading.Thread(target=work, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits until the checkpoint that is being written is on the disk, or is given up.

        Training goes on without a checkpoint that the disk refuses: an error is logged, and the last good one stays.

        Raises:
            RuntimeError: if a rank was lost.
        """
        if self._written is None:
            return
        self._written.wait()
        self._written = None
        if self._error is not None:
            raise self._error
        if self.refusal and self.topology.rank == 0:
            good = next(iter(newest_first(self.folder)), None)
            logger.error(
                "a checkpoint was not written: %s; the last good one is %s. Free some space, or lower "
                "checkpoint.keep_last",
                *(self.refusal, good or "missing"),
            )

    def _prune(self) -> None:
        held = newest_first(self.folder)
        spans = [path for path in held if _place(path)[1:] == (0, 0)]
        kept = {*held[: self.config.keep_last], *spans[: self.config.keep_spans]}
        for path in held:
            if path not in kept:
                discard(path)


class Candidates:
    """The checkpoints from which a run could go on, judged by their manifests alone.

    Args:
        folder: of the run's checkpoints.
        resume: ``auto``, ``never``, or the path of a checkpoint.

    Raises:
        ValueError: if the checkpoint at the path is damaged or there is none, or there are newer ones beside it; or if
            a newer version wrote the newest.
    """

    def __init__(self, folder: Path, resume: str) -> None:
        self.sound: list[Stored] = []
        self.damaged: dict[Path, str] = {}
        """Why checkpoints were passed over."""
        if resume == "never":
            return
        if resume != "auto":
            path = Path(resume)
            try:
                self.sound.append(Stored(path))
            except ValueError as error:
                raise ValueError(f"resume: {path} is no sound checkpoint: {error}") from None
            siblings = newest_first(folder) if path.resolve().parent == folder.resolve() else []
            newer = [one.name for one in siblings if _place(one) > _place(path)]
            if newer:
                raise ValueError(
                    f"resume: {folder} holds newer checkpoints than {path.name} ({', '.join(newer)}): name another "
                    "run_dir, or remove them"
                )
            return
        for path in newest_first(folder):
            try:
                self.sound.append(Stored(path))
            except NewerFormat:
                raise
            except ValueError as error:
                self.damaged[path] = str(error)

    def choose(self, verify: bool, topology: Topology, group: dist.ProcessGroup) -> Stored | None:
        """Takes the newest one whose files are sound; collective.

        Args:
            verify: whether checksums are compared, each rank reading its share.
            topology: this rank's place.
            group: speaks gloo.

        Returns:
            The checkpoint; None if there is none that is sound.

        Raises:
            Refusal: if the ranks do not see the same checkpoints.
        """

        def everywhere(mine: Any) -> list[Any]:
            said = [None] * topology.world_size
            dist.all_gather_object(said, mine, group)
            return said

        seen = everywhere([str(stored.folder) for stored in self.sound])
        if any(one != seen[0] for one in seen):
            raise Refusal(f"run_dir: ranks see different checkpoints ({seen}): all must share one file system")
        for stored in self.sound:
            wrong = next(filter(None, everywhere(_unsound(stored, topology) if verify else None)), None)
            if wrong is None:
                return stored
            self.damaged[stored.folder] = wrong
        return None


def _unsound(stored: Stored, topology: Topology) -> str | None:
    try:
        stored.verify(topology.rank, topology.world_size)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _place(path: Path) -> tuple[int, ...]:
    named = _NAME.fullmatch(path.name)
    return tuple(map(int, named.groups())) if named else ()
