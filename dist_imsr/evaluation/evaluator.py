"""Tests a model on the span after the last trained one."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torchrec import JaggedTensor

from dist_imsr.checks import require
from dist_imsr.data.batch import BatchConfig, TestBatch
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.history import History, PastItems
from dist_imsr.data.span import SpanData
from dist_imsr.data.steps import Follow
from dist_imsr.distributed.catalogue import Catalogue
from dist_imsr.distributed.interest_store import InterestStore
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.metrics import Metrics
from dist_imsr.evaluation.parts import JointFile
from dist_imsr.evaluation.ranking import Ranker
from dist_imsr.evaluation.repeats import Repeats, rank_with_each
from dist_imsr.evaluation.seen import SeenItems
from dist_imsr.evaluation.user_table import user_table
from dist_imsr.keys import free
from dist_imsr.phases import Phase

_TAIL = 0.2  # share of all interactions that belongs to the long tail
_POPULAR = 1 << 16  # larger counts are not distinguished


@dataclass
class EvalConfig:
    """Metrics of a test.

    Args:
        top: every N of HR@N, NDCG@N, recall@N and MRR@N; validation uses the largest.
        exclude_seen: leave out items that a user met in an earlier span; a target among them is a miss.
        beyond: also report the share of the catalogue in the top N of all tested users (coverage), and the share of
            their places with items of the long tail: the least popular items in the spans before it, which have a
            fifth of these interactions together. Costs a second pass over the catalogue.
        max_users: test about this many users of a span at most; the same users for every seed and strategy. All by
            default.
        per_user: a run also writes the metrics of each tested user to run_dir/users/span=T.parquet, where T is the
            tested span; tests before this key was set have no such file.
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

    def check(self, dataset: Dataset) -> None:
        """Refuses to leave out items that users met in retired spans.

        Raises:
            ValueError: with the reason and what to do.
        """
        if self.exclude_seen and dataset.first_kept:
            raise ValueError(
                f"eval.exclude_seen: a test needs the items of all earlier spans, but {dataset.retired_rows}: prepare "
                "the whole log again, into another folder, or test without this key"
            )


class Evaluator:
    """Exact tests over the whole catalogue; every method is collective.

    Args:
        dataset: the prepared data.
        store: this rank's interests.
        catalogue: the item table.
        ranker: the ranker of the catalogue.
        topology: ranks and devices.
        batch: batch sizes.
        config: the metrics.
        seed: seed of the run.
        repeats: what scores add for repeats.
        candidates: what else they might add.

    Attributes:
        gains: the sums of the largest N's NDCG over users, of the last test, with each candidate.
    """

    def __init__(
        self,
        *,
        dataset: Dataset,
        store: InterestStore,
        catalogue: Catalogue,
        ranker: Ranker,
        topology: Topology,
        batch: BatchConfig,
        config: EvalConfig,
        seed: int,
        repeats: Repeats,
        candidates: Sequence[Repeats] = (),
    ) -> None:
        self.dataset, self.store, self.catalogue, self.ranker = dataset, store, catalogue, ranker
        self.topology = topology
        self.batch, self.config, self.seed, self.repeats = batch, config, seed, repeats
        self.buckets = topology.buckets(dataset.buckets)
        self.candidates, self.gains = candidates, list[float]()

    @Phase("test", shown=True)
    def test(self, span: int, follow: Follow, per_user: Path | None = None) -> dict[str, Any]:
        """Tests the current model on a span.

        All users of the span with interactions in an earlier span are tested, or ``max_users`` of them, so that all
        strategies are compared on the same users. For a user without interests all items tie, which is a miss.

        Args:
            span: the span after the last trained one.
            follow: iterates over batches; takes a name and the users per global batch.
            per_user: a Parquet file for the metrics of each tested user, for paired tests; None for no file.

        Returns:
            The metrics, and ``eval_seconds``.

        Raises:
            ValueError: if scores count repeats of retired spans.
        """
        if self.repeats.weight and self.dataset.first_kept:
            raise ValueError(f"repeats: scores count all that users have met, but {self.dataset.retired_rows}")
        begin, items, most = time.perf_counter(), self.dataset.items_by_span[span], max(self.config.top)
        data = SpanData(self.dataset, span, self.buckets, self.batch, self.seed, self.topology.sum)
        # Who met what before is not known once spans are retired: then metrics of unseen items are null.
        history = History(self.dataset, self.buckets, span - 1) if not self.dataset.first_kept else None
        metrics, gains = Metrics(self.config.top), torch.zeros(len(self.candidates), dtype=torch.float64)
        beyond = _BeyondAccuracy(self.dataset, self.catalogue, self.topology, span) if self.config.beyond else None
        batches: Any = data.testing(lambda users: self.dataset.known(users, span - 1), self.config.max_users)
        with torch.no_grad(), JointFile(per_user, self.topology) if per_user else nullcontext() as file:
            for batch in follow(batches, f"test on span {span}", self.batch.eval_size):
                interests = self.store.gather(self.store.owned.rows(batch.users), self.topology.device)
                past = None if history is None else history(batch.users)
                seen, embeddings = self._lookup(batch, past)
                ranks = self.ranker.ranks(interests, batch.targets, embeddings, items, most, seen)
                if self.config.exclude_seen:
                    ranks = ranks.without_seen()
                values = metrics.add(batch, ranks)
                if self.candidates and seen is not None and past is not None:
                    targets = JaggedTensor(batch.targets.values()[batch.last], lengths=torch.ones_like(batch.last))
                    users = interests, targets, embeddings[batch.last]
                    gains += rank_with_each(self.ranker, *users, items, most, seen, past, self.candidates)
                if beyond:
                    left_out = seen.items if seen and self.config.exclude_seen else None
                    repeats = seen if self.repeats.weight and not self.config.exclude_seen else None
                    beyond.add(self.ranker.best(interests, items, most, left_out, repeats)[1])
                if file:
                    file.write(user_table(self.dataset, batch, ranks.all_items, values, self.config.top))
        self.topology.sum(metrics.sums)
        self.gains = self.topology.sum(gains).tolist() if self.candidates else []
        results = metrics.result() | (beyond.result() if beyond else {})
        return results | {"eval_seconds": time.perf_counter() - begin}

    def _lookup(self, batch: TestBatch, past: PastItems | None) -> tuple[SeenItems | None, torch.Tensor]:
        """What the users met before, if that is known, and the targets' embeddings; collective."""
        if past is None:
            [embeddings] = self.catalogue.lookup(batch.targets)
            return None, embeddings
        device = self.topology.device
        items = past.jagged(device)
        embeddings, seen_embeddings = self.catalogue.lookup(batch.targets, items)
        return SeenItems(items, seen_embeddings, self.repeats.bonus(past, device)), embeddings


class _BeyondAccuracy:
    """Coverage and long-tail share of the top N of all users; each rank counts the items of its own shard."""

    def __init__(self, dataset: Dataset, catalogue: Catalogue, topology: Topology, span: int) -> None:
        self.topology, self.items, self.rows = topology, dataset.items_by_span[span], catalogue.rows
        known = range(self.rows.start, max(self.rows.start, min(self.rows.stop, self.items)))
        popularity = torch.from_numpy(dataset.popularity(known, span - 1)).long()
        counts = torch.bincount(popularity.clamp(max=_POPULAR), minlength=_POPULAR + 1).double()
        interactions = topology.sum(counts * torch.arange(_POPULAR + 1)).cumsum(0)
        self.tail = popularity <= int(torch.searchsorted(interactions, _TAIL * interactions[-1]))
        self.shown = torch.zeros(len(known), dtype=torch.bool)
        self.sums = torch.zeros(2, dtype=torch.float64)  # places in lists, places with items of the long tail

    def add(self, ids: torch.Tensor) -> None:
        """Counts lists of item ids ``[B, N]``, -1 for padding; collective."""
        for (part,) in self.topology.gather_jagged([ids]):
            place = part.flatten().cpu() - self.rows.start
            place = place[(place >= 0) & (place < len(self.shown))]
            self.shown[place] = True
            self.sums += torch.tensor([len(place), int(self.tail[place].sum())])

    def result(self) -> dict[str, float | None]:
        """Shares in [0, 1]; None if no user was tested. Collective."""
        shown = torch.tensor([float(self.shown.sum())], dtype=torch.float64)
        places, tail, covered = self.topology.sum(torch.cat([self.sums, shown])).tolist()
        if not places:
            return {"coverage": None, "long_tail": None}
        return {"coverage": covered / self.items, "long_tail": tail / places}
