"""A run from its configuration to its table: the folder, the world, the report."""

import fcntl
import json
import logging
import os
import shutil
from pathlib import Path

from dist_imsr.config import current_rank, to_yaml
from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.command import FAILED, Refusal, Stopped, run
from dist_imsr.distributed.signals import StopSignals
from dist_imsr.distributed.topology import Topology, connect, locate
from dist_imsr.files import write_whole
from dist_imsr.training.checkpoint import Candidates, Checkpoints, set_aside
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.identity import differences, identity
from dist_imsr.training.trainer import Trainer

logger = logging.getLogger(__name__)

_CAPTION = (
    "The model of each span is tested on the next. hr and ndcg rank each user's latest interaction there among all "
    "items; _any takes any of the user's interactions; _new and _existing split hr by whether the user met that item "
    "in an earlier span. Rates are fractions of the users."
)
_OURS = ("config.yaml", "metrics.jsonl", "events", "spans", "checkpoints")  # what a run writes into its folder


def train(config: TrainConfig) -> int:
    """Trains, tests and reports, from where an earlier process of the run came to; every rank calls it.

    Args:
        config: the whole tree.

    Returns:
        The exit status: 0, or 2 for refused inputs, 1 for a loss that is not finite, 75 after SIGTERM or SIGUSR1 (the
        same command goes on when it is started again), 130 after Ctrl-C; in these cases one line on stderr says what
        to do.
    """

    def work() -> None:
        dataset, candidates = _check(config)
        claim = _claim(config, candidates) if current_rank() == 0 else None
        with StopSignals() as signals:
            trainer = begin(config, dataset, candidates, connect(config.timeout_seconds), signals)
            lines = trainer.run()
        title = f"{config.run_dir}: {config.strategy.name}"
        trainer.reporter.table(lines, _columns(config.eval.top), title, _CAPTION)
        if trainer.checkpoints is not None and trainer.checkpoints.refusal:
            raise Stopped("all spans are trained and tested, but the last checkpoint is missing", FAILED)
        if claim is not None:
            os.close(claim)

    return run("train", work, f"interrupted; the tested spans are in {config.run_dir / 'metrics.jsonl'}")


def begin(
    config: TrainConfig, dataset: Dataset, candidates: Candidates, topology: Topology, signals: StopSignals | None
) -> Trainer:
    """A trainer at the beginning of a run, or where its newest sound checkpoint stands; collective.

    Args:
        config: the whole tree.
        dataset: the prepared data.
        candidates: the checkpoints to go on from.
        topology: this rank's place.
        signals: tells whether somebody asked the run to stop.

    Returns:
        The trainer; metrics.jsonl holds the lines up to there.

    Raises:
        Refusal: if there are checkpoints, but none is sound.
    """
    told, folder = identity(config, dataset.digest, topology.device), config.run_dir / "checkpoints"
    arguments = (folder, config.checkpoint, topology, config.timeout_seconds, told)
    checkpoints = Checkpoints(*arguments) if config.checkpoint.enabled or candidates.sound else None
    stored = None
    if checkpoints is not None:
        stored = candidates.choose(config.checkpoint.verify, topology, checkpoints.group)
    if stored is None and candidates.damaged:
        raise Refusal(_unsound(folder, candidates))
    trainer = Trainer(config, dataset, topology, checkpoints, stored, signals)
    if topology.rank == 0:
        for path, reason in candidates.damaged.items():
            logger.warning("passed over and renamed to %s: %s", set_aside(path).name, reason)
        if stored is not None:
            logger.info("going on from %s", stored.folder)
        lines = (json.dumps(line) + "\n" for line in trainer.progress.lines)
        write_whole(config.run_dir / "metrics.jsonl", "".join(lines))
    return trainer


def _check(config: TrainConfig) -> tuple[Dataset, Candidates]:
    """Refuses what cannot work before any rank is connected; writes nothing."""
    dataset, topology = Dataset(config.data), locate()
    topology.buckets(dataset.buckets)
    config.catalogue.optimizer_on(topology.device)
    folder = config.run_dir / "checkpoints"
    inside = Path(config.resume).resolve().is_relative_to(config.run_dir.resolve())
    if config.overwrite and config.resume not in ("auto", "never") and inside:
        raise ValueError(f"overwrite: it would remove {config.resume}, which resume names; name another run_dir")
    candidates = Candidates(folder, "never" if config.overwrite and config.resume == "auto" else config.resume)
    if candidates.damaged and not candidates.sound:
        raise ValueError(_unsound(folder, candidates))
    if candidates.sound:
        newest = candidates.sound[0]
        wrong = differences(newest.manifest["identity"], identity(config, dataset.digest, topology.device))
        if wrong:
            raise ValueError(
                f"resume: {newest.folder} is of another run: {'; '.join(wrong)}. Pass the same keys, name another "
                "run_dir, or begin anew with --overwrite"
            )
    return dataset, candidates


def _unsound(folder: Path, candidates: Candidates) -> str:
    reasons = "; ".join(candidates.damaged.values())
    return f"resume: no checkpoint in {folder} is sound: {reasons}. Name another run_dir, or --overwrite"


def _columns(tops: list[int]) -> list[str]:
    names = ("hr{}", "ndcg{}", "hr{}_any", "ndcg{}_any", "hr{}_new", "hr{}_existing")
    rates = [name.format(f"@{top}") for top in tops for name in names]
    return ["span", "test_span", "users", *rates, "interests_mean", "loss", "train_seconds", "eval_seconds"]


def _claim(config: TrainConfig, candidates: Candidates) -> int:
    """Makes the run's folder, holds it against other processes, and refuses to write over an earlier run."""
    folder = config.run_dir
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run_dir: {folder} is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        claim = os.open(folder, os.O_RDONLY)
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"run_dir: another process is writing to {folder}; wait for it, or name another") from None
    except OSError as error:
        raise ValueError(f"run_dir: {folder} cannot be written: {error.strerror}") from None
    ours = any(stored.folder.parent.parent.resolve() == folder.resolve() for stored in candidates.sound)
    held = [folder / name for name in _OURS if (folder / name).exists()]
    if not config.overwrite and not ours:
        # A process that was killed before its first checkpoint leaves nothing that a new one would not write again.
        lost = [path for path in held if config.resume != "auto" or _worth(path)]
        if lost:
            raise ValueError(f"run_dir: {folder} holds an earlier run; name another folder, or pass --overwrite true")
    for path in [] if ours else held:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        write_whole(folder / "config.yaml", to_yaml(config))
    except OSError as error:
        raise ValueError(f"run_dir: {folder} cannot be written: {error.strerror}") from None
    return claim


def _worth(path: Path) -> bool:
    """Whether what a run left holds more than its beginning."""
    if path.name == "metrics.jsonl":
        return path.stat().st_size > 0
    return path.name in ("spans", "checkpoints") and any(not one.name.startswith(".") for one in path.iterdir())
