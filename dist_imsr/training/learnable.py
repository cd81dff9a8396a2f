"""Refuses data from which a run could learn nothing, of which it could test nothing, or whose rows are gone."""

from dist_imsr.data.dataset import Dataset
from dist_imsr.data.held_out import SHORTEST_SPLIT
from dist_imsr.strategies import build_strategy
from dist_imsr.strategies.training_config import TrainingConfig
from dist_imsr.training.config import TrainConfig

_SHORTEST_TRAINED = 2  # a history of one interaction, and a target
_REMEDY = (
    "prepare the data with fewer --spans, a larger --alpha, a lower --min_interactions, or another part of the log "
    "(--from, --until)"
)


def check_learnable(dataset: Dataset, config: TrainingConfig) -> None:
    """Refuses data without users to train on in span 0, without any to validate, or without any to test.

    Later spans may lack them.

    Args:
        dataset: the prepared data.
        config: the spans to train, and whether validation chooses an epoch.

    Raises:
        ValueError: naming the folder, the numbers and what to do; or a key of the section that needs more spans.
    """
    last, entries = config.last(dataset.spans), dataset.entries
    if not entries[0].trainable_users:
        raise ValueError(
            f"data.path: {dataset.path} has nothing to train on in span 0, the pre-training span: none of its "
            f"{entries[0].active_users:,} users has {_SHORTEST_TRAINED} interactions there, or "
            f"{SHORTEST_SPLIT + 1} of which {SHORTEST_SPLIT - 1} are held out: {_REMEDY}"
        )
    if config.patience and not any(entry.split_users for entry in entries[: last + 1]):
        raise ValueError(
            f"data.path: {dataset.path} has nothing to validate on in {_named(range(last + 1))}: none of the "
            f"{sum(entries[last].users):,} users there has {SHORTEST_SPLIT} interactions in one span: {_REMEDY}; "
            "or train all epochs, with --training.patience 0"
        )
    tested = range(2, dataset.spans)  # the model of span 1 is the first that is tested
    if last and tested and not any(entries[span].tested_users for span in tested):
        raise ValueError(
            f"data.path: {dataset.path} has nothing to test on in {_named(tested)}: no user has {SHORTEST_SPLIT} "
            f"interactions in one of them and any in an earlier span: {_REMEDY}; or only pre-train, with "
            "--training.spans 0"
        )


def check_rows(dataset: Dataset, config: TrainConfig, spans: range) -> None:
    """Refuses retired spans that a run would read.

    Args:
        dataset: the prepared data.
        config: the whole tree.
        spans: those that are trained; if there are none, the last trained one is tested on ``spans.start``.

    Raises:
        ValueError: with the reason and what to do.
    """
    if spans.start < dataset.first_kept:
        raise ValueError(
            f"data.path: this run would read span {spans.start}, but {dataset.retired_rows}: prepare the whole log "
            "again, into another folder, or resume a run that has trained these spans"
        )
    config.eval.check(dataset)
    config.repeats.check(dataset)
    build_strategy(config.strategy).check(dataset, spans)


def _named(spans: range) -> str:
    return f"spans {spans[0]} to {spans[-1]}" if len(spans) > 1 else f"span {spans[0]}"
