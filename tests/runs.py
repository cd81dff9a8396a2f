"""Runs as launch/train.py makes them, on ranks that are connected already, and what they leave."""

import hashlib
import os

import torch.distributed as dist

from dist_imsr.training.folder import claim_folder
from dist_imsr.training.run import begin, check

_TIMES = ("train_seconds", "eval_seconds")


def run(topology, config):
    """Begins or resumes a run, and ends it; returns `left`."""
    dataset, candidates = check(config)
    dist.barrier()  # until then nobody changes the folder
    claim = claim_folder(config, candidates.own) if topology.rank == 0 else None
    dist.barrier()
    trainer = begin(config, dataset, candidates, topology, None)
    trainer.run()
    if claim is not None:
        os.close(claim)
    return left(trainer)


def left(trainer):
    """What a run ends with on this rank: its lines without times, and a digest of each tensor."""
    store = trainer.model.store
    kept = {f"companion.{name}": rows for name, rows in trainer.strategy.state().items()}
    tensors = {name: rows.values for name, rows in (trainer.model.tensors() | kept).items()}
    tensors |= {"offsets": store.offsets, **store.slots._asdict()}
    digests = {
        name: hashlib.sha256(value.detach().cpu().numpy().tobytes()).hexdigest() for name, value in tensors.items()
    }
    return timeless(trainer.progress.lines), digests


def timeless(lines):
    """Lines of metrics.jsonl without what a clock wrote."""
    return [{key: value for key, value in line.items() if key not in _TIMES} for line in lines]
