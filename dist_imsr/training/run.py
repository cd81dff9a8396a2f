"""A run from its configuration to its table: the folder, the log, the world, the exit status."""

import logging
import shutil
import sys

import torch.distributed as dist

from dist_imsr.config import current_rank, to_yaml
from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.topology import connect, locate
from dist_imsr.training.trainer import TrainConfig, Trainer

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
_CAPTION = (
    "The model of each span is tested on the next. hr and ndcg rank each user's latest interaction there among all "
    "items; _any takes any of the user's interactions; _new and _existing split hr by whether the user met that item "
    "in an earlier span. Rates are fractions of the users."
)
_OURS = ("config.yaml", "metrics.jsonl", "events", "spans", "checkpoints")  # what a run writes into its folder


def train(config: TrainConfig) -> int:
    """Trains, tests and reports; every rank calls it.

    Args:
        config: the whole tree.

    Returns:
        The exit status: 0, or 2 for refused inputs, 1 for a loss that is not finite, 130 after Ctrl-C; in these cases
        one line on stderr says what to do.
    """
    _talk()
    try:
        dataset = _check(config)
    except ValueError as error:
        # Every rank meets the same refusal; one line is enough.
        return _end(str(error), BAD_INPUT) if current_rank() == 0 else BAD_INPUT
    try:
        topology = connect(config.timeout_seconds)
        trainer = Trainer(config, dataset, topology)
        lines = trainer.run()
        title = f"{config.run_dir}: {config.strategy.name}"
        trainer.reporter.table(lines, _columns(config.training.top), title, _CAPTION)
        dist.destroy_process_group()
        return 0
    except FloatingPointError as error:
        return _end(str(error), FAILED) if current_rank() == 0 else FAILED
    except ValueError as error:
        return _end(f"rank {current_rank()}: {error}", BAD_INPUT)
    except KeyboardInterrupt:
        line = f"interrupted; the tested spans are in {config.run_dir / 'metrics.jsonl'}"
        return _end(line, INTERRUPTED) if current_rank() == 0 else INTERRUPTED


def _check(config: TrainConfig) -> Dataset:
    """Refuses what cannot work before any rank is connected."""
    dataset, topology = Dataset(config.data), locate()
    topology.buckets(dataset.buckets)
    config.catalogue.optimizer_on(topology.device)
    if topology.rank == 0:
        _claim(config)
    return dataset


def _columns(top: int) -> list[str]:
    at = f"@{top}"
    rates = [f"hr{at}", f"ndcg{at}", f"hr{at}_any", f"ndcg{at}_any", f"hr{at}_new", f"hr{at}_existing"]
    return ["span", "test_span", "users", *rates, "interests_mean", "loss", "train_seconds", "eval_seconds"]


def _talk() -> None:
    """Lets rank 0 tell of progress and every rank of trouble."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level="ERROR", force=True)
    logging.getLogger("dist_imsr").setLevel("INFO" if current_rank() == 0 else "ERROR")


def _claim(config: TrainConfig) -> None:
    """Makes the run's folder, and refuses to write over an earlier run unless told to."""
    folder = config.run_dir
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run_dir: {folder} is a file; name a folder")
    held = [folder / name for name in _OURS if (folder / name).exists()]
    if held and not config.overwrite:
        raise ValueError(f"run_dir: {folder} holds an earlier run; name another folder, or pass --overwrite true")
    for path in held:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(to_yaml(config))
    except OSError as error:
        raise ValueError(f"run_dir: {folder} cannot be written: {error.strerror}") from None


def _end(message: str, status: int) -> int:
    print(f"train: {message}", file=sys.stderr, flush=True)
    return status
