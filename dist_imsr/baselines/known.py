"""What a baseline may look at: the interactions in the spans up to one."""

from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.batch import Batch, BatchConfig
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.history import History, PastItems
from dist_imsr.data.jagged import owners_of
from dist_imsr.data.sorted_keys import find_sorted
from dist_imsr.data.span import SpanData
from dist_imsr.data.steps import Steps
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.metrics import Ranks

USERS_AT_ONCE = 1024


class TargetItems(NamedTuple):
    """Targets of users.

    Args:
        owner: ``[A]``, the user's index.
        item: ``[A]``, ids.
    """

    owner: np.ndarray
    item: np.ndarray

    def places(self, past: PastItems) -> np.ndarray:
        """The index of each target among its user's items, ``[A]``; -1 for one that the user has not met."""
        items = 1 + max(past.item.max(initial=0), self.item.max(initial=0))
        return find_sorted(past.owner * items + past.item, self.owner * items + self.item)


class Baseline(Protocol):
    """Ranks items for users without a trained model.

    Attributes:
        facts: what it has chosen, for the lines of results.
    """

    facts: dict[str, float]

    def ranks(self, users: torch.Tensor, targets: JaggedTensor) -> Ranks:
        """Ranks targets.

        Args:
            users: ``[B]`` int64, ids of known users of this rank.
            targets: B sequences of distinct item ids.
        """


class Known:
    """The interactions of this rank's users in the spans up to one, which stay on disk.

    Args:
        dataset: the prepared data.
        span: the last span that counts, at least 1; the next one is tested.
        topology: ranks; each owns the users of its buckets.
        top: N of the NDCG@N by which options are chosen.

    Attributes:
        items: the number of items that are ranked: those known by the end of the tested span.
    """

    def __init__(self, dataset: Dataset, span: int, topology: Topology, top: int) -> None:
        self.dataset, self.span, self.topology, self.top = dataset, span, topology, top
        self.items = dataset.items_by_span[span + 1]

    @property
    def buckets(self) -> range:
        """The buckets of this rank's users."""
        return self.topology.buckets(self.dataset.buckets)

    def open(self, span: int) -> SpanData:
        """A span of this rank's users."""
        batch = BatchConfig(eval_size=USERS_AT_ONCE, max_history=1)
        return SpanData(self.dataset, span, self.buckets, batch, seed=0, world_sum=self.topology.sum)

    @cached_property
    def past(self) -> History:
        """Looks up all items of users."""
        return History(self.dataset, self.buckets, self.span)

    @cached_property
    def training_past(self) -> History:
        """Looks up the items of users before their second last interaction in the last span."""
        return History(self.dataset, self.buckets, self.span, training=True)

    def validation(self) -> Steps[Batch]:
        """Each user's second last interaction in the last span, as the target."""
        return self.open(self.span).validation(max_users=self.dataset.users)


def target_items(targets: JaggedTensor) -> TargetItems:
    """Targets as arrays on the host."""
    return TargetItems(owners_of(targets).numpy(force=True), targets.values().numpy(force=True))
