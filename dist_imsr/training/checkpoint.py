"""Checkpoints of a run: written while it trains, pruned, and listed."""

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

from dist_imsr import devices
from dist_imsr.checks import require
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.distributed.topology import Topology
from dist_imsr.training.checkpoint_storage import DISCARDED, PARTIAL, discard
from dist_imsr.training.storage import Tables, store

logger = logging.getLogger(__name__)
_NAME = re.compile(r"span=(\d+)-(?:before-test|epoch=(\d+)-step=(\d+))(?:\.(\d+))?")
DAMAGED = "damaged-"


@dataclass
class CheckpointConfig:
    """How often checkpoints are written, besides after every epoch and every span, and how many are kept.

    Args:
        enabled: write any.
        every_steps: also after this many steps of an epoch; 0 for never.
        keep_last: number of the newest ones to keep.
        keep_spans: number of the newest ones between two spans to keep as well.
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
    """The name of a checkpoint's folder, by its span, its epoch and the epoch's next step; names sort in time order."""
    return f"span={span:02d}-epoch={epoch:03d}-step={step:06d}"


def name_before_test(span: int) -> str:
    """The name of the folder, if the last trained span is still to be tested on this one."""
    return f"span={span:02d}-before-test"


def newest_first(folder: Path) -> list[Path]:
    """The folders of the checkpoints in a folder, which may be missing, with damaged ones and earlier versions."""
    return sorted((path for path in folder.glob("span=*") if _NAME.fullmatch(path.name)), key=_position, reverse=True)


def set_aside(damaged: Path) -> Path:
    """Renames a damaged checkpoint's folder, so that it is kept but not found; returns the new path."""
    suffixes = itertools.chain([""], (f".{number}" for number in itertools.count(2)))
    names = (damaged.with_name(f"{DAMAGED}{damaged.name}{suffix}") for suffix in suffixes)
    return damaged.rename(next(path for path in names if not path.exists()))


def clear_away(folder: Path) -> None:
    """Removes what killed processes left incomplete in a folder of checkpoints or spans, which may be missing."""
    for partial in (*folder.glob(f"{PARTIAL}*"), *folder.glob(f"{DISCARDED}*")):
        shutil.rmtree(partial)


class Checkpoints:
    """Writes the checkpoints of one run, one at a time, in a thread alongside the training.

    Args:
        folder: of the checkpoints.
        config: the section.
        topology: of the ranks.
        timeout_seconds: that a rank waits for the others.
        identity: of `dist_imsr.training.identity`, for the manifests.
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
        # A group of its own: its collectives must not interleave with those of the training.
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
        self.refusal: str | None = None
        """Why the latest checkpoint was not written; None if it was."""
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._written: threading.Event | None = None
        if topology.rank == 0 and config.enabled:
            folder.mkdir(parents=True, exist_ok=True)

    def save(self, name: str, tensors: dict[str, ShardRows], tables: Tables, facts: dict[str, Any]) -> None:
        """Starts to write a checkpoint, once the previous one is written; collective.

        Args:
            name: of its folder.
            tensors: this rank's rows on the host; they must not change any more, but for copies that are on their way.
            tables: this rank's, by their path.
            facts: further keys of the manifest, from rank 0.
        """
        self.close()
        written = self._written = threading.Event()
        wait_for_copies = devices.copies_done(self.topology.device)

        def work() -> None:
            begin = time.perf_counter()
            try:
                wait_for_copies()
                everything = {"identity": self.identity, **facts}
                store(self.folder / name, tensors, tables, everything, self.topology.rank, self.group)
                self.refusal = None
            except OSError as error:
                self.refusal = str(error)
            except BaseException as error:  # raised again in `wait`
                self._error = error
            finally:
                written.set()
            if self.refusal is None and self._error is None:
                logger.debug("%s is on the disk, after %.3f s", self.folder / name, time.perf_counter() - begin)
                if self.topology.rank == 0:
                    self._prune()  # only the next save waits for it

        # Not a daemon: the process must not exit in the middle of a collective.
        self._thread = threading.Thread(target=work, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Waits until the current checkpoint is on the disk or has failed.

        If the disk fails, an error is logged, the last good checkpoint stays, and training continues.

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
                self.refusal,
                good or "missing",
            )

    def close(self) -> None:
        """Waits until the thread has finished writing and removing.

        Raises:
            RuntimeError: as `wait` does.
        """
        self.wait()
        if self._thread is not None:
            self._thread.join()
            self._thread = None  # frees the copies that it wrote

    def _prune(self) -> None:
        found = newest_first(self.folder)
        spans = [path for path in found if _position(path)[1:3] <= (0, 0)]
        kept = {*found[: self.config.keep_last], *spans[: self.config.keep_spans]}
        for path in found:
            if path not in kept:
                try:
                    discard(path)
                except OSError as error:
                    logger.warning("an old checkpoint was not removed, at least in part: %s", error)


def _position(path: Path) -> tuple[int, ...]:
    """The numbers of span, epoch, step and version; epoch and step are -1 before the test."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        return ()
    span, epoch, step, version = match.groups()
    return int(span), int(epoch or -1), int(step or -1), int(version or 0)
