"""Refuses data from which a run could learn nothing, or of which it could test nothing."""

import numpy as np

from dist_imsr.data.dataset import SHORTEST_SPLIT, Dataset, held_out
from dist_imsr.strategies.training_config import TrainingConfig

_SHORTEST_TRAINED = 2  # a history of one interaction, and a target
_REMEDY = (
    "prepare the data with fewer --spans, a larger --alpha, a lower --min_interactions, or another part of the log "
    "(--from, --until)"
)


def check_learnable(dataset: Dataset, config: TrainingConfig) -> None:
    """Refuses data without users to train on in span 0, without any to validate, or without any to test.

    Later spans may lack them. In the usual case each check ends at the first bucket; data that are refused are read
    once, but for their items.

    Args:
        dataset: the prepared data.
        config: the spans to train, and whether validation chooses an epoch.

    Raises:
        ValueError: naming the folder, the numbers and what to do; or the key `spans`, if the data have fewer.
    """
    last = config.last(dataset.spans)
    if not any(_trained(dataset, bucket).any() for bucket in range(dataset.buckets)):
        raise ValueError(
            f"data.path: {dataset.path} has nothing to train on in span 0, the pre-training span: none of its "
            f"{_count_users(dataset, range(1)):,} users has {_SHORTEST_TRAINED} interactions there, or "
            f"{SHORTEST_SPLIT + 1} of which {SHORTEST_SPLIT - 1} are held out: {_REMEDY}"
        )
    trained = range(last + 1)
    if config.patience and not _any_split(dataset, trained):
        raise ValueError(
            f"data.path: {dataset.path} has nothing to validate on in {_named(trained)}: none of the "
            f"{_count_users(dataset, trained):,} users there has {SHORTEST_SPLIT} interactions in one span: {_REMEDY}; "
            "or train all epochs, with --training.patience 0"
        )
    tested = range(2, dataset.spans)  # the model of span 1 is the first that is tested
    if last and not _any_tested(dataset, tested):
        raise ValueError(
            f"data.path: {dataset.path} has nothing to test on in {_named(tested)}: none of the "
            f"{_count_users(dataset, tested):,} users there has {SHORTEST_SPLIT} interactions in one span and any in "
            f"an earlier span: {_REMEDY}; or only pre-train, with --training.spans 0"
        )


def _trained(dataset: Dataset, bucket: int) -> np.ndarray:
    """Which users of span 0 are trained on, ``[n]`` bool."""
    lengths = np.diff(dataset.sequences(0, bucket).offsets)
    return lengths - held_out(lengths) >= _SHORTEST_TRAINED


def _any_split(dataset: Dataset, spans: range) -> bool:
    """Whether any user has interactions that are held out in one of the spans."""
    return any(
        held_out(np.diff(dataset.sequences(span, bucket).offsets)).any()
        for span in spans
        for bucket in range(dataset.buckets)
    )


def _any_tested(dataset: Dataset, spans: range) -> bool:
    """Whether any user has held-out interactions in one of the spans, and any interactions before it."""
    for bucket in range(dataset.buckets):
        for span in spans:
            sequences = dataset.sequences(span, bucket)
            tested = sequences.users[held_out(np.diff(sequences.offsets)) > 0]
            if len(tested) and any(
                np.isin(dataset.sequences(earlier, bucket).users, tested).any() for earlier in range(span)
            ):
                return True
    return False


def _count_users(dataset: Dataset, spans: range) -> int:
    """The number of users with interactions in any of the spans."""
    return sum(
        len(np.unique(np.concatenate([dataset.sequences(span, bucket).users for span in spans])))
        for bucket in range(dataset.buckets)
    )


def _named(spans: range) -> str:
    return f"spans {spans[0]} to {spans[-1]}" if len(spans) > 1 else f"span {spans[0]}"
