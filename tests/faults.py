"""Kills ranks at chosen points of a run and lets it go on, again and again, until it ends.

``python -m tests.faults --data DIR --config configs/drift.yaml --kills 30 --seed 0`` compares the end with that of a
run that nobody disturbed.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from dist_imsr.benchmarks.ranks import LocalRanks
from dist_imsr.config import parse
from dist_imsr.distributed.interest_store import InterestStore
from dist_imsr.evaluation.ranking import Ranker
from dist_imsr.files import SealedFile
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.recommender import Recommender
from tests.runs import run

# Training, validation and test, the end of a span; a save's writes, commits and removals.
_POINTS = [
    *((Recommender, "update"), (Recommender, "snapshot"), (Ranker, "ranks"), (InterestStore, "scatter")),
    *((SealedFile, "write"), (os, "fsync"), (os, "rename"), (os, "replace"), (shutil, "rmtree")),
]


def counted(topology, config, kill=None, only=None):
    """A run that tells how many points each rank passed, or kills a rank with SIGKILL at one of them.

    ``kill`` is (rank, number of the point); ``only`` restricts points to those of some names.
    """
    passed, real = [0], []
    for owner, name in _POINTS:
        if only is None or name in only:
            original = getattr(owner, name)
            real.append((owner, name, original))
            setattr(owner, name, _counting(original, passed, kill, topology.rank))
    try:
        return run(topology, config), passed[0]
    finally:
        for owner, name, original in real:
            setattr(owner, name, original)


def _counting(original, passed, kill, rank):
    def call(*args, **kwargs):
        passed[0] += 1
        if kill == (rank, passed[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    return call


def disturbed(config, kills, draw, longest, world_size=2, only=None, tell=lambda *_: None):
    """Runs until the end through some kills at points up to ``longest``; returns what `run` does, and the deaths."""
    deaths = 0
    while True:
        kill = (draw.randrange(world_size), draw.randint(1, longest)) if deaths < kills else None
        begin = time.monotonic()
        with LocalRanks(world_size, seconds=300) as ranks:
            try:
                told = ranks.call(counted, config, kill, only)
            except RuntimeError as error:
                if "died without a word" not in str(error) and "Connection" not in str(error):
                    raise
                deaths += 1
                tell(kill, time.monotonic() - begin)
            else:
                return [left for left, _ in told], deaths


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as scratch:
        arguments = [f"--config={options.config}", f"--data.path={options.data}", "--checkpoint.every_steps=20"]
        config = parse(TrainConfig, [*arguments, f"--run_dir={scratch}/whole"])
        begin = time.monotonic()
        with LocalRanks(2, seconds=600) as ranks:
            told = ranks.call(counted, config)
        print(f"undisturbed: {time.monotonic() - begin:.0f} s, points {[passed for _, passed in told]}", flush=True)
        longest = 3 * min(passed for _, passed in told) // (2 * options.kills)

        def tell(kill, seconds):
            newest = max(path.name for path in Path(scratch, "killed").glob("checkpoints/span=*"))
            print(f"rank {kill[0]} killed at point {kill[1]} after {seconds:.0f} s, newest {newest}", flush=True)

        again = replace(config, run_dir=Path(scratch, "killed"))
        left, deaths = disturbed(again, options.kills, random.Random(options.seed), longest, tell=tell)
        same = [one == another for (one, _), another in zip(told, left, strict=True)]
        print(f"{deaths} kills; lines, table, interests and dense weights bit-equal on each rank: {same}")


if __name__ == "__main__":
    main()
