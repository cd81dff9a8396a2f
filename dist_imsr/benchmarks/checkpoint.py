"""Saving and loading of checkpoints, against plain files of as many bytes, and the time that a save costs training.

All sides run on the same ranks, with the model of the benchmark ``train``, and take turns. Both sides of a comparison
end on the disk when they write, and begin there when they read.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dist_imsr.benchmarks.options import FolderOptions
from dist_imsr.benchmarks.report import Bound, Figure, Floor, figures_of, ratios
from dist_imsr.benchmarks.steps import StepsOptions, StepsWorker, build_recommender
from dist_imsr.benchmarks.world import Workers, World, take_turns, timed
from dist_imsr.checks import require
from dist_imsr.distributed.topology import Topology
from dist_imsr.strategies import Strategy
from dist_imsr.strategies.fine_tuning import FineTuning
from dist_imsr.strategies.progress import Progress
from dist_imsr.training.checkpoint import CheckpointConfig, Checkpoints, name_of, newest_first
from dist_imsr.training.state import pack, unpack
from dist_imsr.training.storage import Stored

_CALL_SECONDS = 3600.0  # limit of one call
_BLOCK = 16 << 20  # bytes that the plain side reads or writes at a time
_BLOCK_OVER_SAVE = 3  # a block of training takes so many times the seconds of a save alone: training slows saves down


@dataclass(frozen=True, kw_only=True)
class CheckpointBench(StepsOptions, FolderOptions):
    """Times checkpoints of ComiRec-DR over a synthetic catalogue.

    Args:
        buckets: of users, each with its own files; a multiple of ranks.
        steps: of a block of training; more are taken where a save would outlast them.
    """

    buckets: int = 64
    repeats: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.buckets % self.ranks == 0, "buckets", self.buckets, f"a multiple of ranks, {self.ranks}")

    @property
    def n_buckets(self) -> int:
        """The number of buckets of users."""
        return self.buckets


def bench_checkpoint(options: CheckpointBench) -> list[Figure]:
    """Measures saving and loading against the disk's speed, and by how much a save delays training.

    Returns:
        Bytes of a checkpoint; the rates of a save and of a load over those of plain files; seconds of all four; seconds
        that a save adds to a block of training, and those of them in which training stands still.

    Raises:
        RuntimeError: if a checkpoint cannot be written, or is damaged.
    """
    with options.scratch() as folder, World(options, _CALL_SECONDS) as world:
        workers = world.start(CheckpointWorker, options, folder)
        # Each side once, so that the timed runs find their memory allocated.
        save_seconds = _run(workers, CheckpointWorker.save)
        size = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
        workers.call(CheckpointWorker.fill, size)
        for method in (CheckpointWorker.write, CheckpointWorker.load, CheckpointWorker.read):
            _run(workers, method)
        workers.call(CheckpointWorker.train, options.steps, False)
        step_seconds = workers.seconds(CheckpointWorker.train, options.steps, False) / options.steps
        steps = max(options.steps, math.ceil(_BLOCK_OVER_SAVE * save_seconds / step_seconds))

        save, write = take_turns(
            options.repeats, partial(_run, workers, CheckpointWorker.save), partial(_plain_write, workers, folder)
        )
        load, read = take_turns(
            options.repeats,
            partial(_run_from_disk, workers, CheckpointWorker.load, folder),
            partial(_run_from_disk, workers, CheckpointWorker.read, folder),
        )
        saving, quiet = take_turns(
            options.repeats, partial(_train, workers, steps, True), partial(_train, workers, steps, False)
        )
    lost = [one[0] - other[0] for one, other in zip(saving, quiet, strict=True)]
    bounds = {
        "seconds_a_save": _plain_bound("seconds_a_plain_write", write),
        "seconds_a_load": _plain_bound("seconds_a_plain_read", read),
    }
    files = {
        "seconds_a_save": save,
        "seconds_a_plain_write": write,
        "seconds_a_load": load,
        "seconds_a_plain_read": read,
    }
    rates = {"save_rate_over_plain_write": ratios(write, save), "load_rate_over_plain_read": ratios(read, load)}
    training = {
        "train_seconds_lost_per_save": lost,
        "train_seconds_blocked_per_save": [blocked for _, blocked, _ in saving],
    }
    waited = {"steps": steps, "seconds_waited_at_the_end": [waited for _, _, waited in saving]}
    return [
        Figure("checkpoint_bytes", "bytes", [size], options.settings),
        *figures_of(options.settings, "ratio", rates),
        *figures_of(options.settings, "s", files, bounds),
        *figures_of(options.settings | waited, "s", training),
    ]


def _plain_bound(figure: str, seconds: Sequence[float]) -> Bound:
    """The bound of plain files of as many bytes."""
    return lambda rates: Floor(figure, statistics.median(seconds))


def _run(workers: Workers, method: Callable[..., None]) -> float:
    seconds = workers.seconds(method)
    workers.call(CheckpointWorker.finish)
    return seconds


def _plain_write(workers: Workers, folder: Path) -> float:
    """Writes plain files; as with checkpoints, the old ones stay until the new ones are there."""
    old = list(folder.glob("plain-*"))
    seconds = _run(workers, CheckpointWorker.write)
    for path in old:
        path.unlink()
    return seconds


def _run_from_disk(workers: Workers, method: Callable[..., None], folder: Path) -> float:
    drop_cached(folder)
    return _run(workers, method)


def _train(workers: Workers, steps: int, saving: bool) -> tuple[float, float, float]:
    """Seconds of a block of training, of the copy before its first step, and of the wait after its last."""
    seconds, results = workers.timed(CheckpointWorker.train, steps, saving)
    workers.call(CheckpointWorker.finish)
    blocked, waited = (max(column) for column in zip(*results, strict=True))
    return seconds, blocked, waited


def drop_cached(folder: Path) -> None:
    """Drops a folder's files, which must have been synced, from the page cache: the next reader uses the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


class CheckpointWorker:
    """One rank's model in training, its checkpoints, and plain files."""

    def __init__(self, topology: Topology, options: CheckpointBench, folder: Path) -> None:
        self.topology, self.folder, self.saves, self.writes = topology, folder, 0, 0
        self.model = build_recommender(topology, options)
        self.strategy: Strategy = FineTuning()  # which keeps nothing of its own
        self.steps = StepsWorker(topology, options, lambda *_: self.model.train_step)
        config = CheckpointConfig(keep_last=1, keep_spans=0)
        self.checkpoints = Checkpoints(folder / "checkpoints", config, topology, _CALL_SECONDS, {})
        self.bytes = np.empty(0, dtype=np.uint8)

    def fill(self, size: int) -> None:
        """Makes this rank's share of the plain bytes: random ones, which a disk cannot compress."""
        rank, ranks = self.topology.rank, self.topology.world_size
        share = (rank + 1) * size // ranks - rank * size // ranks
        self.bytes = np.frombuffer(np.random.default_rng(rank).bytes(share), dtype=np.uint8)

    def save(self) -> None:
        """Saves until the checkpoint is on the disk."""
        self._start_save()
        self._wait()

    def write(self) -> None:
        """Writes this rank's share of the plain bytes."""
        self.writes += 1
        with (self.folder / f"plain-{self.topology.rank}-{self.writes}").open("wb", buffering=0) as file:
            for start in range(0, len(self.bytes), _BLOCK):
                file.write(self.bytes[start : start + _BLOCK].data)
            os.fsync(file.fileno())

    def load(self) -> None:
        """Finds the newest checkpoint, verifies its checksums and loads its state."""
        stored = Stored(newest_first(self.checkpoints.folder)[0])
        stored.verify(self.topology.rank, self.topology.world_size)
        unpack(stored, self.model, self.strategy, self.checkpoints.group)

    def read(self) -> None:
        """Reads this rank's share of the checkpoint's files, divided as for the checksums."""
        files = [path for path in self.checkpoints.folder.rglob("*") if path.is_file()]
        files.sort(key=lambda path: (path.stat().st_size, path))
        buffer = bytearray(_BLOCK)
        for path in files[self.topology.rank :: self.topology.world_size]:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def train(self, steps: int, saving: bool) -> tuple[float, float]:
        """Trains a block, with or without a save that starts with it.

        Returns:
            Seconds of the copy before the first step, on CUDA devices of its submission alone; and of the wait for the
            save after the last step.
        """
        begin = time.perf_counter()
        if saving:
            self._start_save()
        blocked = time.perf_counter() - begin
        timed(self.topology, self.steps.run, steps)
        begin = time.perf_counter()
        self._wait()
        return blocked, time.perf_counter() - begin

    def finish(self) -> None:
        """Waits until older checkpoints are removed."""
        self.checkpoints.close()

    def _start_save(self) -> None:
        self.saves += 1  # names must rise, or the newest is pruned
        progress = Progress(step=self.saves, steps=self.saves)
        tensors, tables, facts = pack(self.model, self.strategy, progress)
        self.checkpoints.save(name_of(0, 0, self.saves), tensors, tables, facts)

    def _wait(self) -> None:
        self.checkpoints.wait()
        if self.checkpoints.refusal:
            raise RuntimeError(f"a checkpoint was not written: {self.checkpoints.refusal}")
