"""Checkpoints of a run: written while it goes on, pruned, and found again."""

import itertools
import logging
import re
import shutil
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dist_imsr.checks import require
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.distributed.topology import Topology
from dist_imsr.training.storage import DISCARDED, PARTIAL, Tables, discard, store

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
    suffixes = itertools.chain([""], (f".{number}" for number in itertools.count(2)))
    names = (damaged.with_name(f"{_DAMAGED}{damaged.name}{suffix}") for suffix in suffixes)
    return damaged.rename(next(path for path in names if not path.exists()))


def clear_away(folder: Path) -> None:
    """Removes what a process left that was killed while it wrote or removed a checkpoint.

    Args:
        folder: of the checkpoints; it may be missing.
    """
    for left in (*folder.glob(f"{PARTIAL}*"), *folder.glob(f"{DISCARDED}*")):
        shutil.rmtree(left)


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
        if topology.rank == 0 and config.enabled:
            folder.mkdir(parents=True, exist_ok=True)

    def save(self, name: str, tensors: dict[str, ShardRows], tables: Tables, facts: dict[str, Any]) -> None:
        """Begins to write a checkpoint, once the one before is written; collective.

        Args:
            name: of its folder.
            tensors: this rank's rows; nobody may change them any more.
            tables: this rank's, by their path.
            facts: what rank 0 adds to the manifest.
        """
        self.close()
        written = self._written = threading.Event()

        def work() -> None:
            begin = time.perf_counter()
            try:
                told = {"identity": self.identity, **facts}
                store(self.folder / name, tensors, tables, told, self.topology.rank, self.group)
                self.refusal = None
            except OSError as error:
                self.refusal = str(error)
            except BaseException as error:  # raised again by whoever waits
                self._error = error
            finally:
                written.set()
            if self.refusal is None and self._error is None:
                logger.debug("%s is on the disk, after %.3f s", self.folder / name, time.perf_counter() - begin)
                if self.topology.rank == 0:
                    self._prune()  # nobody waits for it but the next save

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

    def close(self) -> None:
        """Waits until nothing is written or removed any more.

        Raises:
            RuntimeError: as `wait` does.
        """
        self.wait()
        if self._thread is not None:
            self._thread.join()
            self._thread = None  # and with it the copies that it wrote

    def _prune(self) -> None:
        held = newest_first(self.folder)
        spans = [path for path in held if _place(path)[1:] == (0, 0)]
        kept = {*held[: self.config.keep_last], *spans[: self.config.keep_spans]}
        for path in held:
            if path not in kept:
                try:
                    discard(path)
                except OSError as error:
                    logger.warning("an old checkpoint stays, at least in part: %s", error)


def _place(path: Path) -> tuple[int, ...]:
    named = _NAME.fullmatch(path.name)
    return tuple(map(int, named.groups())) if named else ()
