"""Saving and loading of checkpoints, against plain files of as many bytes, and what a save costs the training.

All sides run on the same ranks, over the model of the benchmark ``train``, and take turns. Both sides of a comparison
end on the disk when they write, and begin there when they read.
"""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dist_imsr.benchmarks import train
from dist_imsr.benchmarks.clock import timed
from dist_imsr.benchmarks.report import Bound, Figure, Least, ratios
from dist_imsr.benchmarks.train import TrainBench
from dist_imsr.benchmarks.world import Device, settings_of, settle, world
from dist_imsr.checks import require, require_file, require_folder
from dist_imsr.data.batch import Batch
from dist_imsr.distributed.topology import Topology
from dist_imsr.training.checkpoint import CheckpointConfig, Checkpoints, newest_first
from dist_imsr.training.state import Progress, packed, unpack
from dist_imsr.training.storage import Stored

_PATIENCE = 3600.0  # seconds that one call of one side may take
_BLOCK = 16 << 20  # bytes that the plain side reads or writes at a time
_ROOM = 3  # a block of training is as many times as long as a save alone, which is slower beside training


@dataclass(frozen=True)
class CheckpointBench:
    """Times checkpoints of ComiRec-DR over a synthetic catalogue.

    Args:
        items: rows of the table.
        users: users in the interest store, over all ranks.
        buckets: of users, each with its own files; a multiple of ranks.
        device: what ranks work on; auto is CUDA where there is a device.
        ranks: processes; 0 for two on the host, and for one on each device of CUDA.
        threads: of each process.
        dim: d.
        interests: K of every user.
        batch: users in a global step.
        steps: of a block of training; more are taken where a save would outlast them.
        repeats: runs of each side.
        folder: where scratch files are written, and removed at the end; the current directory by default.
        seed: of the synthetic batches.
        json: where the figures are written as a list of objects.
    """

    items: int = 1_700_000
    users: int = 100_000
    buckets: int = 64
    device: Device = "auto"
    ranks: int = 0
    threads: int = 1
    dim: int = 64
    interests: int = 4
    batch: int = 1024
    steps: int = 10
    repeats: int = 5
    folder: Path | None = None
    seed: int = 0
    json: Path | None = None

    def __post_init__(self) -> None:
        settle(self)
        _ = self.training  # which checks the keys that they share
        fits = self.buckets > 0 and self.buckets % self.ranks == 0
        require(fits, "buckets", self.buckets, f"a multiple of ranks, {self.ranks}")
        require_folder(self.folder or Path(), "folder")
        require_file(self.json, "json")

    @property
    def training(self) -> TrainBench:
        """The model, its users and the batches."""
        return TrainBench.shared(self)


def bench_checkpoint(options: CheckpointBench) -> list[Figure]:
    """Measures how near saving and loading come to the disk's speed, and for how long a save holds training up.

    Args:
        options: the subcommand's.

    Returns:
        Bytes of a checkpoint; the rates of a save and of a load over those of plain files; seconds of all four; seconds
        that a save adds to a block of training, and for how many of them the training itself stands still.

    Raises:
        RuntimeError: if the disk refuses a checkpoint, or one that was written is damaged.
    """
    place = (options.folder or Path()).resolve()
    with (
        tempfile.TemporaryDirectory(prefix="bench-checkpoint-", dir=place) as scratch,
        world(options, _PATIENCE) as ranks,
    ):
        folder = Path(scratch)

        def run(act: Callable[..., tuple[float, ...]], *args: int) -> list[float]:
            return [max(column) for column in zip(*ranks.call(_measure, act, *args), strict=True)]

        ranks.call(_set_up, options, folder)
        # Each side once, so that what is timed has grown its memory already.
        save_seconds = run(_Held.save)[0]
        size = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
        ranks.call(_fill, size)
        for act in (_Held.write, _Held.load, _Held.read):
            run(act)
        run(_Held.train, options.steps, False)
        step_seconds = run(_Held.train, options.steps, False)[0] / options.steps
        steps = max(options.steps, math.ceil(_ROOM * save_seconds / step_seconds))

        def plain_write() -> list[float]:
            # As with checkpoints, the old file is there until the new one is.
            old = list(folder.glob("plain-*"))
            told = run(_Held.write)
            for path in old:
                path.unlink()
            return told

        def from_disk(act: Callable[..., tuple[float, ...]]) -> list[float]:
            _drop_cached(folder)
            return run(act)

        saves, writes = _take_turns(options, lambda: run(_Held.save), plain_write)
        loads, reads = _take_turns(options, lambda: from_disk(_Held.load), lambda: from_disk(_Held.read))
        saving, quiet = _take_turns(
            options, lambda: run(_Held.train, steps, True), lambda: run(_Held.train, steps, False)
        )

    settings = settings_of(options)
    save, write, load, read = ([seconds for seconds, *_ in side] for side in (saves, writes, loads, reads))
    lost = [one[0] - other[0] for one, other in zip(saving, quiet, strict=True)]
    blocks = settings | {"steps": steps, "seconds_waited_at_the_end": [waited for _, _, waited in saving]}
    return [
        Figure("checkpoint_bytes", "bytes", [size], settings),
        Figure("save_rate_over_plain_write", "ratio", ratios(write, save), settings),
        Figure("load_rate_over_plain_read", "ratio", ratios(read, load), settings),
        Figure("seconds_a_save", "s", save, settings, _plain("seconds_a_plain_write", write)),
        Figure("seconds_a_plain_write", "s", write, settings),
        Figure("seconds_a_load", "s", load, settings, _plain("seconds_a_plain_read", read)),
        Figure("seconds_a_plain_read", "s", read, settings),
        Figure("train_seconds_lost_per_save", "s", lost, blocks),
        Figure("train_seconds_blocked_per_save", "s", [blocked for _, blocked, _ in saving], blocks),
    ]


def _plain(figure: str, seconds: Sequence[float]) -> Bound:
    """The bound of what ends on the disk or begins there: plain files of as many bytes, measured in turn."""
    return lambda rates: Least(figure, statistics.median(seconds))


def _take_turns(options: CheckpointBench, *sides: Callable[[], list[float]]) -> list[list[list[float]]]:
    """Runs every side once a repeat, every second time in reverse order; returns what each side told."""
    told: list[list[list[float]]] = [[] for _ in sides]
    for repeat in range(options.repeats):
        for number in range(len(sides))[:: -1 if repeat % 2 else 1]:
            told[number].append(sides[number]())
    return told


def _drop_cached(folder: Path) -> None:
    """Makes the next reader of a folder's files fetch them from the disk; they must have been written to it."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


class _Held:
    """What one rank measures with: its part of the model, and the files of both sides.

    The methods that are timed return further seconds that belong to them.
    """

    def __init__(self, topology: Topology, options: CheckpointBench, folder: Path) -> None:
        self.topology, self.folder, self.saves, self.writes = topology, folder, 0, 0

        def build(topology: Topology, training: TrainBench) -> Callable[[Batch, Batch], Any]:
            self.model = train.recommender(topology, training)
            return self.model.update

        train.set_up(topology, build, options.training)
        self.offsets = [bucket * options.users // options.buckets for bucket in range(options.buckets + 1)]
        self.buckets = topology.buckets(options.buckets)
        config = CheckpointConfig(keep_last=1, keep_spans=0)
        self.checkpoints = Checkpoints(folder / "checkpoints", config, topology, _PATIENCE, {})
        self.plain = np.empty(0, dtype=np.uint8)

    def save(self) -> tuple[float, ...]:
        """Saves until the checkpoint is on the disk."""
        self._begin_to_save()
        self._wait()
        return ()

    def write(self) -> tuple[float, ...]:
        """Writes this rank's share of as many bytes."""
        self.writes += 1
        with (self.folder / f"plain-{self.topology.rank}-{self.writes}").open("wb", buffering=0) as file:
            for start in range(0, len(self.plain), _BLOCK):
                file.write(self.plain[start : start + _BLOCK].data)
            os.fsync(file.fileno())
        return ()

    def load(self) -> tuple[float, ...]:
        """Finds the newest checkpoint, compares its checksums and takes its state over."""
        stored = Stored(newest_first(self.checkpoints.folder)[0])
        stored.verify(self.topology.rank, self.topology.world_size)
        unpack(stored, self.model, self.offsets, self.buckets, self.checkpoints.group)
        return ()

    def read(self) -> tuple[float, ...]:
        """Reads this rank's share of the checkpoint's files, divided as for the checksums."""
        files = [path for path in self.checkpoints.folder.rglob("*") if path.is_file()]
        files.sort(key=lambda path: (path.stat().st_size, path))
        room = bytearray(_BLOCK)
        for path in files[self.topology.rank :: self.topology.world_size]:
            with path.open("rb", buffering=0) as file:
                while file.readinto(room):
                    pass
        return ()

    def train(self, steps: int, saving: bool) -> tuple[float, ...]:
        """Trains a block, with a save that begins with it or without.

        Returns:
            Seconds that the copy took before the first step, and that the save took after the last.
        """
        begin = time.perf_counter()
        if saving:
            self._begin_to_save()
        blocked = time.perf_counter() - begin
        train.run(self.topology, steps)
        begin = time.perf_counter()
        self._wait()
        return blocked, time.perf_counter() - begin

    def _begin_to_save(self) -> None:
        self.saves += 1  # names must rise, or the newest is pruned
        progress = Progress(step=self.saves, steps=self.saves)
        self.checkpoints.save(progress.name, *packed(self.model, progress, self.offsets, self.buckets))

    def _wait(self) -> None:
        self.checkpoints.wait()
        if self.checkpoints.refusal:
            raise RuntimeError(f"a checkpoint was not written: {self.checkpoints.refusal}")


_held: _Held  # of this rank's process


def _set_up(topology: Topology, options: CheckpointBench, folder: Path) -> None:
    global _held
    _held = _Held(topology, options, folder)


def _fill(topology: Topology, size: int) -> None:
    """Makes this rank's share of the plain bytes: random, as a disk may compress others."""
    share = (topology.rank + 1) * size // topology.world_size - topology.rank * size // topology.world_size
    _held.plain = np.frombuffer(np.random.default_rng(topology.rank).bytes(share), dtype=np.uint8)


def _measure(topology: Topology, act: Callable[..., tuple[float, ...]], *args: int) -> tuple[float, ...]:
    """Seconds until the slowest rank has done something, and those that it tells of."""
    seconds, told = timed(topology, act, _held, *args)
    _held.checkpoints.close()  # older checkpoints are gone before files are looked at
    return seconds, *told
