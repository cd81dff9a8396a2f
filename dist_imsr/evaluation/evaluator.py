"""Tests a model on a span that it has not seen."""

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from dist_imsr.checks import require
from dist_imsr.data.batch import BatchConfig, TestBatch
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.history import History, met
from dist_imsr.data.span import SpanData
from dist_imsr.data.steps import Follow
from dist_imsr.distributed.catalogue import Catalogue
from dist_imsr.distributed.interest_store import InterestStore
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.metrics import Metrics
from dist_imsr.evaluation.parts import JointFile
from dist_imsr.evaluation.ranking import Ranker
from dist_imsr.keys import free
from dist_imsr.phases import Phase

_TAIL = 0.2  # of all interactions: what the items of the long tail hold together
_POPULAR = 1 << 16  # counts from it on are alike


@dataclass
class EvalConfig:
    """What a test measures.

    Args:
        top: every N of HR@N, NDCG@N, recall@N and MRR@N; validation takes the largest.
        exclude_seen: leave out what a user met in an earlier span; a target among it is a miss.
        beyond: also tell which share of the catalogue the top N of the tested users hold, and which share of their
            places goes to the long tail: the least popular items, over all spans of the data, that hold a fifth of the
            interactions; costs a second pass over the catalogue.
        max_users: about so many of a span's users are tested, where there are more: the same ones whatever the seed and
            the strategy. All by default.
        per_user: a run also writes each tested user's own values to run_dir/users/span=T.parquet, T being the span that
            is tested on; what was tested before it was asked for stays without.
    """

    top: list[int] = field(default_factory=lambda: [20])
    exclude_seen: bool = False
    beyond: bool = False
    max_users: int | None = None
    per_user: bool = field(default=False, metadata=free(compare="grid"))

    def __post_init__(self) -> None:
        require(bool(self.top) and min(self.top) >= 1, "eval.top", self.top, "numbers of at least 1")
        require(len(set(self.top)) == len(self.top), "eval.top", self.top, "different numbers")
        require(self.max_users is None or self.max_users >= 1, "eval.max_users", self.max_users, "at least 1")


class Evaluator:
    """Exact tests over the whole catalogue; every method is collective.

    Args:
        dataset: the prepared data.
        store: this rank's interests.
        catalogue: the item table.
        ranker: ranks it.
        topology: this rank's place.
        batch: the batches' section.
        config: what is measured.
        seed: of the run.
    """

    def __init__(
        self,
        dataset: Dataset,
        store: InterestStore,
        catalogue: Catalogue,
        ranker: Ranker,
        topology: Topology,
        batch: BatchConfig,
        config: EvalConfig,
        seed: int,
    ) -> None:
        self.dataset, self.store, self.catalogue, self.ranker = dataset, store, catalogue, ranker
        self.topology = topology
        self.batch, self.config, self.seed = batch, config, seed
        self.buckets = topology.buckets(dataset.buckets)

    @Phase("test", shown=True)
    def test(self, span: int, follow: Follow, per_user: Path | None = None) -> dict[str, Any]:
        """Tests the model as it stands on a span.

        All users of the span who were met in an earlier one are tested, or ``max_users`` of them, whatever the strategy
        made of them, so that strategies are compared on the same users. One without interests ties everywhere, which is
        a miss.

        Args:
            span: the span after the last trained one.
            follow: goes through batches, given a name and the users of a global one.
            per_user: a Parquet file for each tested user's own values, for paired tests; none without it.

        Returns:
            The metrics, and ``eval_seconds``.
        """
        begin, items, most = time.perf_counter(), self.dataset.items_by_span[span], max(self.config.top)
        data = SpanData(self.dataset, span, self.buckets, self.batch, self.seed, self.topology.sum)
        known = met(self.dataset, self.buckets, span - 1)
        history = History(self.dataset, self.buckets, span - 1) if self.config.exclude_seen else None
        metrics = Metrics(self.config.top)
        lists = _Lists(self.dataset, self.catalogue, self.topology, items) if self.config.beyond else None
        batches: Any = data.testing(lambda users: known[users - self.store.first_user], self.config.max_users)
        with torch.no_grad(), JointFile(per_user, self.topology) if per_user else nullcontext() as file:
            for batch in follow(batches, f"test on span {span}", self.batch.eval_size):
                interests = self.store.gather(batch.users - self.store.first_user, self.topology.device)
                seen = history(batch.users) if history else None
                [embeddings] = self.catalogue.lookup(batch.targets)
                ranks = self.ranker.ranks(interests, batch.targets, embeddings, items, most, seen)
                values = metrics.add(batch, ranks)
                if lists:
                    lists.add(self.ranker.best(interests, items, most, seen)[1])
                if file:
                    file.write(self._table(batch, ranks, values))
        self.topology.sum(metrics.sums)
        told = metrics.result() | (lists.result() if lists else {})
        return told | {"eval_seconds": time.perf_counter() - begin}

    def _table(self, batch: TestBatch, ranks: torch.Tensor, values: dict[str, torch.Tensor]) -> pa.Table:
        """Users as rows; a rank beyond the largest N is not exact, so it is left out."""
        items, last = batch.targets.values()[batch.last], ranks[batch.last].numpy(force=True)
        told = {
            "user": self.dataset.raw("users", batch.users.numpy(force=True)),
            "item": self.dataset.raw("items", items.numpy(force=True)),
            "rank": pa.array(last, mask=last > max(self.config.top)),
            "new": batch.last_is_new.numpy(force=True),
        }
        return pa.table(told | {name: column.numpy(force=True) for name, column in values.items()})


class _Lists:
    """What the top N of all users hold: each rank keeps account of its own rows."""

    def __init__(self, dataset: Dataset, catalogue: Catalogue, topology: Topology, items: int) -> None:
        self.topology, self.items, self.rows = topology, items, catalogue.rows
        known = range(self.rows.start, max(self.rows.start, min(self.rows.stop, items)))
        popularity = torch.from_numpy(dataset.popularity(known))
        counts = torch.bincount(popularity.clamp(max=_POPULAR), minlength=_POPULAR + 1).double()
        held = topology.sum(counts * torch.arange(_POPULAR + 1)).cumsum(0)
        self.tail = popularity <= int(torch.searchsorted(held, _TAIL * held[-1]))
        self.shown = torch.zeros(len(known), dtype=torch.bool)
        self.sums = torch.zeros(2, dtype=torch.float64)  # places, those of the long tail

    def add(self, ids: torch.Tensor) -> None:
        """Counts lists of items ``[B, N]``, -1 where there is none; collective."""
        for (part,) in self.topology.gather_jagged([ids]):
            place = part.flatten().cpu() - self.rows.start
            place = place[(place >= 0) & (place < len(self.shown))]
            self.shown[place] = True
            self.sums += torch.tensor([len(place), int(self.tail[place].sum())])

    def result(self) -> dict[str, float | None]:
        """Shares in [0, 1]; None where nobody was tested. Collective."""
        shown = torch.tensor([float(self.shown.sum())], dtype=torch.float64)
        places, tail, held = self.topology.sum(torch.cat([self.sums, shown])).tolist()
        return {"coverage": held / self.items, "long_tail": tail / places} if places else dict.fromkeys(_BEYOND)


_BEYOND = ("coverage", "long_tail")
