"""Baselines that score every known item for a user, a block of users at a time, in one process."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torchrec import JaggedTensor

from dist_imsr.baselines.known import Known, TargetItems, target_items
from dist_imsr.baselines.ranks import count_own, count_sorted, ranks_of
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.held_out import trained_places
from dist_imsr.data.history import PastItems
from dist_imsr.evaluation.metrics import Ranks

_BLOCK = 1 << 24  # scores at once


@dataclass
class SizeLimits:
    """The largest data that a baseline accepts whose cost is their product with the number of tested users.

    Args:
        max_items: number of known items.
        max_interactions: number of interactions in all spans.
    """

    max_items: int = 200_000
    max_interactions: int = 5_000_000

    def check_size(self, name: str, dataset: Dataset) -> None:
        """Refuses larger data, naming size and limit."""
        interactions = sum(entry.interactions for entry in dataset.entries)
        sizes = (("items", dataset.items_by_span[-1]), ("interactions", interactions))
        for what, size in sizes:
            limit = getattr(self, f"max_{what}")
            if size > limit:
                raise ValueError(
                    f"baselines: {name} is not for data of this size: {dataset.path} has {size:,} {what}, and "
                    f"{name}.max_{what} is {limit:,}"
                )


def user_items(known: Known, training: bool = False) -> sp.csr_array:
    """The number of interactions of each user with each item, ``[users, items]`` float32; a row is a user's id.

    Args:
        known: what a baseline may look at.
        training: whether to leave out the last span's interactions that are held out of training.
    """
    rows, items = list[np.ndarray](), list[np.ndarray]()
    for span in range(known.span + 1):
        for bucket in known.buckets:
            sequences = known.dataset.sequences(span, bucket)
            lengths = np.diff(sequences.offsets)
            rows.append(sequences.users.repeat(lengths))
            items.append(sequences.items)
            if training and span == known.span:
                kept = trained_places(lengths)
                rows[-1], items[-1] = rows[-1][kept], items[-1][kept]
    pairs = np.concatenate(rows).astype(np.int64), np.concatenate(items).astype(np.int64)
    shape = known.dataset.locals_by_span[known.span] * known.dataset.buckets, known.items
    return sp.coo_array((np.ones(len(pairs[0]), np.float32), pairs), shape).tocsr()  # adds up what is there repeatedly


def dense_ranks(
    known: Known,
    users: torch.Tensor,
    targets: JaggedTensor,
    score: Callable[[np.ndarray, PastItems], np.ndarray],
    training: bool = False,
) -> Ranks:
    """Ranks targets by scores of all items.

    Args:
        known: what a baseline may look at.
        users: ``[B]`` int64, ids.
        targets: B sequences of item ids.
        score: takes ids ``[b]`` and the users' items, and returns scores ``[b, items]``.
        training: whether the users' items are those before validation targets.
    """
    all_targets, size, parts = target_items(targets), max(1, _BLOCK // known.items), list[Ranks]()
    for begin in range(0, len(users), size):
        block = users[begin : begin + size]
        here = slice(*np.searchsorted(all_targets.owner, [begin, begin + size]))
        own = TargetItems(all_targets.owner[here] - begin, all_targets.item[here])
        past = (known.training_past if training else known.past)(block)
        parts.append(_ranks(score(block.numpy(force=True), past), own, past))
    unseen = [part.unseen for part in parts if part.unseen is not None]
    empty = torch.empty(0, dtype=torch.float64)
    return Ranks(torch.cat([empty, *(part.all_items for part in parts)]), torch.cat([empty, *unseen]))


def _ranks(scores: np.ndarray, targets: TargetItems, past: PastItems) -> Ranks:
    """Ranks by scores ``[b, items]``."""
    values = scores[targets.owner, targets.item]
    counts = np.zeros((2, len(values)), np.int64)
    ends = np.searchsorted(targets.owner, np.arange(len(scores) + 1))
    for row in range(len(scores)):
        here = slice(ends[row], ends[row + 1])
        counts[:, here] = count_sorted(np.sort(scores[row]), values[here])
    own = count_own(past, scores[past.owner, past.item], targets, values)
    return ranks_of((counts[0], counts[1]), own, targets.places(past) >= 0)
