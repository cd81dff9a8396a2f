"""A run from its configuration to its table: the folder, the process group, the report."""

import json
import logging
import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from dist_imsr import devices, logs
from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.command import FAILED, Refusal, Stopped, run
from dist_imsr.distributed.signals import StopSignals
from dist_imsr.distributed.topology import Topology, connect, read_topology
from dist_imsr.files import write_whole
from dist_imsr.launcher import rank_info
from dist_imsr.reporter import Reporter
from dist_imsr.training.baselines import add_baselines, describe_baselines
from dist_imsr.training.checkpoint import Checkpoints, set_aside
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.folder import check_folder, claim_folder, record_environment, refuse_locked
from dist_imsr.training.identity import identity
from dist_imsr.training.learnable import check_learnable, check_rows
from dist_imsr.training.profile import keep_before, show
from dist_imsr.training.resume import CheckpointCandidates, as_restarted
from dist_imsr.training.storage import Stored
from dist_imsr.training.trainer import Trainer

logger = logging.getLogger(__name__)

_CAPTION = (
    "The model of each span is tested on the next. hr and ndcg rank each user's latest interaction there among all "
    "items; _any takes any of the user's interactions; _new and _existing split hr by whether the user met that item "
    "in an earlier span. Rates are fractions of the users."
)


class Outcome(NamedTuple):
    """The end of a run.

    Args:
        lines: those of metrics.jsonl.
        saved: whether the last checkpoint is on the disk, or checkpoints are off.
        dataset: the prepared data.
    """

    lines: list[dict[str, Any]]
    saved: bool
    dataset: Dataset

    @property
    def spans(self) -> list[int]:
        """The trained spans that were tested on the next one."""
        return [line["span"] for line in self.lines]

    def check(self) -> None:
        """Reports a run whose last checkpoint the disk refused.

        Raises:
            Stopped: with the status of a failure.
        """
        if not self.saved:
            raise Stopped("all spans are trained and tested, but the last checkpoint is missing", FAILED)


def train(config: TrainConfig) -> int:
    """Trains, tests and reports, from the newest checkpoint of the run on; every rank calls it.

    Args:
        config: the whole tree.

    Returns:
        The exit status: 0, or 2 for refused inputs, 1 for a loss that is not finite, 75 after SIGTERM or SIGUSR1 (the
        same command resumes when it is started again), 130 after Ctrl-C; in these cases one line on stderr says what
        to do.
    """

    def work() -> None:
        with StopSignals() as signals:
            outcome = run_training(config, signals)
        if rank_info().rank == 0:
            title = f"{config.run_dir}: {config.strategy.name}"
            figures = f"Figures: python launch/report.py --runs {config.run_dir} --output {config.run_dir}/report.html"
            baselines = describe_baselines(config, outcome.dataset, outcome.spans)
            caption = "\n".join(filter(None, (_CAPTION, baselines, figures)))
            Reporter(shown=True).table(outcome.lines, _columns(config.eval.top), title, caption)
            if config.profile:
                show(config.run_dir)
        outcome.check()

    return run("train", work, f"interrupted; the tested spans are in {config.run_dir / 'metrics.jsonl'}")


def run_training(config: TrainConfig, signals: StopSignals | None = None) -> Outcome:
    """Trains and tests a run to its end, from its newest checkpoint if there is one; every rank calls it.

    A run that has nothing left to do ends at once: no rank connects, and nothing is loaded or written.

    Args:
        config: the whole tree.
        signals: the requests to stop that this process receives; None for none.

    Raises:
        ValueError: for an impossible configuration, naming the key.
        FloatingPointError: for a loss that is not finite.
        Stopped: after a stop signal, once the state is on the disk.
    """
    effective = as_restarted(config)
    dataset, candidates = check(effective)
    if candidates.own and candidates.remaining.nothing:
        newest = candidates.sound[0]
        if rank_info().rank == 0:
            logger.info(
                "nothing to do: %s is behind span %d, and %s has %d spans; training.until is %s, training.spans %s",
                newest.folder,
                candidates.remaining.spans.start - 1,
                dataset.path,
                dataset.spans,
                config.training.until,
                config.training.spans,
            )
        return Outcome(newest.manifest["progress"]["lines"], saved=True, dataset=dataset)
    topology = connect(config.timeout_seconds)
    claim = _on_rank_0(topology, lambda: claim_folder(effective, candidates.own))
    try:
        if topology.rank == 0:
            record_environment(config.run_dir, topology.device.type, topology.world_size)
        logs.keep(config.run_dir)
        trainer = begin(effective, dataset, candidates, topology, signals)
        with signals.deferred() if signals is not None else nullcontext():
            lines = trainer.run()
        trainer.model.engine.close()
        outcome = Outcome(lines, not (trainer.checkpoints and trainer.checkpoints.refusal), dataset)
        if outcome.saved:
            add_baselines(config, dataset, outcome.spans, topology)
        return outcome
    finally:
        if claim is not None:
            os.close(claim)


def check(config: TrainConfig) -> tuple[Dataset, CheckpointCandidates]:
    """Refuses impossible configurations before any rank connects, on all ranks alike; changes nothing.

    Args:
        config: the whole tree.

    Returns:
        The prepared data, and the checkpoints to resume from.

    Raises:
        ValueError: naming the key; also for data without users to train on, to validate or to test, and for retired
            rows that the run would read.
    """
    dataset, topology = Dataset(config.data), read_topology()
    topology.buckets(dataset.buckets)
    check_learnable(dataset, config.training)
    config.catalogue.check_device(topology.device)
    try:
        candidates = CheckpointCandidates(config, dataset)
        check_folder(config, bool(candidates.own))
    except ValueError:
        refuse_locked(config.run_dir)  # then what was found is another process's work in progress
        raise
    if not candidates.remaining.nothing:
        check_rows(dataset, config, candidates.remaining.spans)
    return dataset, candidates


def begin(
    config: TrainConfig,
    dataset: Dataset,
    candidates: CheckpointCandidates,
    topology: Topology,
    signals: StopSignals | None,
) -> Trainer:
    """Makes the trainer of a run, with the state of its newest sound checkpoint if there is one; collective.

    Args:
        config: the whole tree; rank 0 has claimed its folder.
        dataset: the prepared data.
        candidates: the checkpoints to resume from.
        topology: this rank's place.
        signals: the requests to stop that this process receives.

    Returns:
        The trainer; metrics.jsonl holds the lines up to there.

    Raises:
        Refusal: if there are checkpoints, but none is sound.
    """
    devices.set_deterministic(config.training.deterministic)
    keys, folder = identity(config), config.run_dir / "checkpoints"
    checkpoints = Checkpoints(folder, config.checkpoint, topology, config.timeout_seconds, keys)
    stored = candidates.choose(config.checkpoint.verify, topology, checkpoints.group)
    trainer = Trainer(config, dataset, topology, checkpoints, stored, signals)
    if topology.rank == 0:
        for path in candidates.damaged.keys() & set(candidates.own):
            logger.warning("passed over and renamed to %s: %s", set_aside(path).name, candidates.damaged[path])
    _log_start(trainer, dataset, stored)
    if topology.rank == 0:
        lines = (json.dumps(line) + "\n" for line in trainer.progress.lines)
        write_whole(config.run_dir / "metrics.jsonl", "".join(lines))
        keep_before(config.run_dir, trainer.progress.span)
    return trainer


def _log_start(trainer: Trainer, dataset: Dataset, stored: Stored | None) -> None:
    """Logs what this run is on rank 0, and each rank's share of it in the rank's own file."""
    config, topology, model = trainer.config, trainer.topology, trainer.model
    facts = (
        f"{topology.world_size} rank(s), {topology.local_world_size} a machine, "
        f"{torch.get_num_threads()} thread(s) each, on {topology.device.type}",
        f"{model.catalogue.capacity:,} item rows of {model.catalogue.width} in {model.catalogue.shards} shards, "
        f"kernel {model.catalogue.kernel}",
        f"{dataset.buckets} buckets of users",
        f"{config.batch.size:,} users a step",
        f"{config.data.path}: {dataset.spans} spans, {dataset.users:,} users, {dataset.items_by_span[-1]:,} items",
        f"{config.strategy.name} with {config.model.base}, seed {config.seed}",
        "no checkpoint, so from the beginning" if stored is None else f"resuming from {stored.folder}",
    )
    logger.log(logging.DEBUG if topology.rank else logging.INFO, "; ".join(facts))
    buckets, rows = model.store.owned.buckets, model.catalogue.rows
    logger.debug(
        "process %d on %s, %s: buckets %d:%d, item rows %d:%d",
        os.getpid(),
        socket.gethostname(),
        topology.device,
        buckets.start,
        buckets.stop,
        rows.start,
        rows.stop,
    )


def _on_rank_0(topology: Topology, act: Callable[[], int]) -> int | None:
    """Lets rank 0 act; if that fails, all ranks refuse with its message."""
    result, message = None, list[str | None]([None])
    if topology.rank == 0:
        try:
            result = act()
        except Exception as error:  # the others wait for the message
            message = [str(error)]
    dist.broadcast_object_list(message)
    if message[0] is not None:
        raise Refusal(message[0])
    return result


def _columns(tops: list[int]) -> list[str]:
    names = ("hr{}", "ndcg{}", "hr{}_any", "ndcg{}_any", "hr{}_new", "hr{}_existing", "hr{}_unseen")
    rates = [name.format(f"@{top}") for top in tops for name in names]
    return ["span", "test_span", "users", *rates, "interests_mean", "loss", "train_seconds", "eval_seconds"]
