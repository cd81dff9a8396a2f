"""Kills ranks at chosen points of a run and resumes it, repeatedly, until it completes.

``python -m tests.faults --data DIR --config configs/drift.yaml --kills 30 --seed 0`` compares the final state with that
of an uninterrupted run.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from dist_imsr.benchmarks.ranks import LocalRanks
from dist_imsr.config import parse
from dist_imsr.distributed.interest_store import InterestStore
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.evaluation.ranking import Ranker
from dist_imsr.files import HashedFile
from dist_imsr.training.checkpoint import newest_first
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.storage import Stored
from tests.ranks import ranks_on
from tests.runs import run

# In training, validation, testing and at the end of a span; in the writes, commits and removals of checkpoints.
_POINTS = [
    *((Recommender, "train_step"), (Recommender, "snapshot"), (Ranker, "ranks"), (InterestStore, "scatter")),
    *((HashedFile, "write"), (os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "rmtree")),
]


def run_counted(topology, config, kill=None, only=None):
    """Completes a run and counts the points that this rank passes by name, or kills a rank with SIGKILL at one.

    ``kill`` is (rank, number of the point); ``only`` restricts the points to some names.
    """
    passed, patched = Counter(), []
    for owner, name in _POINTS:
        if only is None or name in only:
            original = getattr(owner, name)
            patched.append((owner, name, original))
            setattr(owner, name, _counting(original, name, passed, kill, topology.rank))
    try:
        return run(topology, config), passed
    finally:
        for owner, name, original in patched:
            setattr(owner, name, original)


def _counting(original, name, passed, kill, rank):
    def call(*args, **kwargs):
        passed[name] += 1
        if kill == (rank, passed.total()):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    return call


def run_with_kills(config, kills, draw, points, steps, world_size=2, report=lambda *_: None):
    """Completes a run through kills that are spread over it; returns the results of `run` by rank.

    ``points`` and ``steps`` are those of the whole run; the part after the newest checkpoint bounds the next kill.
    """
    deaths = 0
    while True:
        longest = int(2 * points * (1 - steps_done(config) / steps) / (kills - deaths + 1))
        kill = (draw.randrange(world_size), draw.randint(1, longest)) if deaths < kills else None
        begin = time.monotonic()
        with LocalRanks(world_size, seconds=300) as ranks:
            try:
                results = ranks.call(run_counted, config, kill)
            except RuntimeError as error:
                if "died without an answer" not in str(error) and "Connection" not in str(error):
                    raise
                deaths += 1
                report(kill, time.monotonic() - begin)
            else:
                assert deaths == kills
                return [state for state, _ in results]


def run_killed_once(config, kill, only, world_size=2):
    """Kills a rank at one of the points of some names and resumes; returns the results of `run` by rank."""
    with LocalRanks(world_size, seconds=300) as ranks, pytest.raises(RuntimeError, match=r"died without|Connection"):
        ranks.call(run_counted, config, kill, only)
    with ranks_on(world_size) as ranks:
        return ranks.call(run, config)


def steps_done(config):
    """The number of steps before the newest checkpoint."""
    newest = next(iter(newest_first(config.run_dir / "checkpoints")), None)
    return Stored(newest).manifest["progress"]["steps"] if newest else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [f"--config={options.config}", f"--data.path={options.data}", "--checkpoint.every_steps=20"]
        config = parse(TrainConfig, [*arguments, f"--run_dir={scratch}/whole"])
        begin = time.monotonic()
        with LocalRanks(2, seconds=600) as ranks:
            results = ranks.call(run_counted, config)
        print(
            f"alone: {time.monotonic() - begin:.0f} s, points {[passed.total() for _, passed in results]}", flush=True
        )

        def report(kill, seconds):
            newest = next(iter(newest_first(again.run_dir / "checkpoints")), None)
            print(f"rank {kill[0]} killed at point {kill[1]} after {seconds:.0f} s, newest {newest}", flush=True)

        again = replace(config, run_dir=Path(scratch, "killed"))
        points = min(passed.total() for _, passed in results)
        draw = random.Random(options.seed)
        states = run_with_kills(again, options.kills, draw, points, steps_done(config), report=report)
        same = [one == another for (one, _), another in zip(results, states, strict=True)]
        print(f"{options.kills} kills; lines, table, interests and dense weights bit-equal on each rank: {same}")


if __name__ == "__main__":
    main()
