"""A run from its configuration to its table: the folder, the world, the report."""

import shutil

from dist_imsr.config import to_yaml
from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.command import run
from dist_imsr.distributed.topology import connect, locate
from dist_imsr.training.trainer import TrainConfig, Trainer

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

    def work() -> None:
        dataset = _check(config)
        trainer = Trainer(config, dataset, connect(config.timeout_seconds))
        lines = trainer.run()
        title = f"{config.run_dir}: {config.strategy.name}"
        trainer.reporter.table(lines, _columns(config.eval.top), title, _CAPTION)

    return run("train", work, f"interrupted; the tested spans are in {config.run_dir / 'metrics.jsonl'}")


def _check(config: TrainConfig) -> Dataset:
    """Refuses what cannot work before any rank is connected."""
    dataset, topology = Dataset(config.data), locate()
    topology.buckets(dataset.buckets)
    config.catalogue.optimizer_on(topology.device)
    if topology.rank == 0:
        _claim(config)
    return dataset


def _columns(tops: list[int]) -> list[str]:
    names = ("hr{}", "ndcg{}", "hr{}_any", "ndcg{}_any", "hr{}_new", "hr{}_existing")
    rates = [name.format(f"@{top}") for top in tops for name in names]
    return ["span", "test_span", "users", *rates, "interests_mean", "loss", "train_seconds", "eval_seconds"]


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
