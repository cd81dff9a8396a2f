"""Runs training as launch/train.py does, on ranks that are already connected, and returns the final state."""

import hashlib
import os

import torch.distributed as dist

from dist_imsr.training.folder import claim_folder
from dist_imsr.training.run import begin, check

_TIMES = ("train_seconds", "eval_seconds")


def run(topology, config):
    """Starts or resumes a run and completes it; returns `left`."""
    dataset, candidates = check(config)
    dist.barrier()  # before any rank changes the folder
    claim = claim_folder(config, candidates.own) if topology.rank == 0 else None
    dist.barrier()
    trainer = begin(config, dataset, candidates, topology, None)
    trainer.run()
    if claim is not None:
        os.close(claim)
    return left(trainer)


def left(trainer):
    """The final state of a run on this rank: its lines of metrics.jsonl without times, and a digest of each tensor."""
    store = trainer.model.store
    kept = {f"companion.{name}": rows for name, rows in trainer.strategy.state().items()}
    tensors = {name: rows.values for name, rows in (trainer.model.tensors() | kept).items()}
    tensors |= {"offsets": store.offsets, **store.slots._asdict()}
    digests = {
        name: hashlib.sha256(value.detach().cpu().numpy().tobytes()).hexdigest() for name, value in tensors.items()
    }
    return timeless(trainer.progress.lines), digests


def timeless(lines):
    """Lines of metrics.jsonl without times."""
    return [{key: value for key, value in line.items() if key not in _TIMES} for line in lines]
