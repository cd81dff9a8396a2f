"""What a baseline may look at: the interactions in the spans up to one."""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.batch import Batch, BatchConfig
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.jagged import concat_rows, owners_of
from dist_imsr.data.span import SpanData
from dist_imsr.data.steps import Steps
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.metrics import Ranks

USERS_AT_ONCE = 1024
_ALL = 1 << 40  # interactions of a user


class PastItems(NamedTuple):
    """The distinct items of B users' histories, user after user, ascending.

    Args:
        owner: ``[m]``, the user's index.
        item: ``[m]``, ids.
        place: ``[n]``, the index of each interaction's user and item among the m.
        age: ``[n]``, the number of the user's later interactions.
        items: the number of known items.
    """

    owner: np.ndarray
    item: np.ndarray
    place: np.ndarray
    age: np.ndarray
    items: int

    def weights(self, decay: float) -> np.ndarray:
        """The decayed counts, ``[m]`` float64: each interaction counts ``decay`` to the power of its age."""
        return np.bincount(self.place, decay**self.age, minlength=len(self.item))

    def recency(self, decay: float) -> np.ndarray:
        """``decay`` to the power of the age of each item's latest interaction, ``[m]`` float64."""
        latest = np.full(len(self.item), _ALL)
        np.minimum.at(latest, self.place, self.age)
        recency: np.ndarray = decay**latest
        return recency

    def find(self, targets: "TargetItems") -> np.ndarray:
        """The index of each target among the m, ``[A]``; -1 for one that its user has not met."""
        own, keys = self.owner * self.items + self.item, targets.owner * self.items + targets.item
        at = np.searchsorted(own, keys)
        found = np.append(own, -1)[at] == keys
        return np.where(found, at, -1)


class TargetItems(NamedTuple):
    """Targets of users.

    Args:
        owner: ``[A]``, the user's index.
        item: ``[A]``, ids.
    """

    owner: np.ndarray
    item: np.ndarray


class Baseline(Protocol):
    """Ranks items for users without a trained model.

    Attributes:
        facts: what it has chosen, for the lines of results.
    """

    facts: dict[str, float]

    def ranks(self, users: torch.Tensor, targets: JaggedTensor) -> Ranks:
        """Ranks targets.

        Args:
            users: ``[B]`` int64, ids of known users of this rank, sorted by bucket.
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

    @cached_property
    def spans(self) -> list[SpanData]:
        """The spans, from the first on."""
        spans = list[SpanData]()
        for span in range(self.span + 1):
            spans.append(self.open(span, BatchConfig(eval_size=USERS_AT_ONCE, max_history=_ALL), earlier=spans[:]))
        return spans

    def open(self, span: int, batch: BatchConfig, earlier: Sequence[SpanData] = ()) -> SpanData:
        """A span of this rank's users."""
        buckets = self.topology.buckets(self.dataset.buckets)
        return SpanData(self.dataset, span, buckets, batch, seed=0, world_sum=self.topology.sum, earlier=earlier)

    def past(self, users: torch.Tensor) -> PastItems:
        """The items of users' whole histories; users are sorted by bucket."""
        ids, longest = users.numpy(force=True), np.full(len(users), _ALL)
        return past_items(concat_rows([data.reader.latest(ids, longest) for data in self.spans]), self.items)

    def validation(self) -> Steps[Batch]:
        """Each user's second last interaction in the last span, with the whole history before it."""
        return self.spans[-1].validation(max_users=self.dataset.users)


def past_items(history: JaggedTensor, items: int) -> PastItems:
    """Counts the items of histories.

    Args:
        history: B sequences of item ids, the oldest first.
        items: the number of known items.
    """
    owner, ids = owners_of(history).numpy(force=True), history.values().numpy(force=True)
    age = history.lengths().numpy(force=True).cumsum()[owner] - 1 - np.arange(len(owner))
    pairs, place = np.unique(owner * items + ids, return_inverse=True)
    return PastItems(pairs // items, pairs % items, place, age, items)


def target_items(targets: JaggedTensor) -> TargetItems:
    """Targets as arrays on the host."""
    return TargetItems(owners_of(targets).numpy(force=True), targets.values().numpy(force=True))
