"""The span loop: pre-train, then for every span train, write interests back and test on the next."""

import json
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from dist_imsr.config import require
from dist_imsr.data.batch import BatchConfig, SpanData
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.distributed.interest_store import InterestStoreConfig
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.evaluator import EvalConfig, Evaluator
from dist_imsr.evaluation.metrics import discount
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.strategies import StrategyConfig, build_strategy
from dist_imsr.training.export import export_span
from dist_imsr.training.growth import Growth, census
from dist_imsr.training.progress import Reporter
from dist_imsr.training.recommender import Detection, Recommender, Snapshot

logger = logging.getLogger(__name__)

_ROUNDING = 1e-12
_UNTRAINED = {"loss": None, "retention_loss": None, "validation": None, "train_seconds": 0.0}


@dataclass
class TrainingConfig:
    """How long to train, and when to stop.

    Args:
        epochs: at most, in the pre-training span.
        incremental_epochs: at most, in every later span.
        patience: epochs without a better validation before the best state is restored; 0 trains all epochs and keeps
            the last.
        metric: what validation measures on each user's second last interaction of the span.
        validation_users: about so many users of a span are validated on, where there are more.
        export: of which spans interests, items and the detector's findings are written under run_dir/spans/; the last
            trained one is what launch/recommend.py and launch/export.py read.
    """

    epochs: int = 50
    incremental_epochs: int = 15
    patience: int = 5
    metric: Literal["ndcg", "mrr"] = "ndcg"
    validation_users: int = 2000
    export: Literal["none", "last", "every"] = "last"

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "training.epochs", self.epochs, "at least 1")
        require(self.incremental_epochs >= 1, "training.incremental_epochs", self.incremental_epochs, "at least 1")
        require(self.patience >= 0, "training.patience", self.patience, "at least 0")
        require(self.validation_users >= 1, "training.validation_users", self.validation_users, "at least 1")


@dataclass
class TrainConfig:
    """Trains a multi-interest recommender span by span and tests it on each next span.

    Args:
        data: the prepared data.
        run_dir: a new folder for config.yaml, metrics.jsonl, events/ and spans/.
        seed: keys every random number of the run.
        overwrite: replace what an earlier run left in run_dir.
        timeout_seconds: how long a rank may be waited for before the job ends.
        model: the base model.
        strategy: the incremental strategy.
        training: length and early stopping.
        batch: what a step sees.
        catalogue: the item table.
        store: the interest store.
        engine: the dense weights.
        ranking: how the catalogue is ranked.
        eval: what a test measures.
    """

    data: DataConfig
    run_dir: Path
    seed: int = 0
    overwrite: bool = False
    timeout_seconds: float = 1800.0
    model: ModelConfig = field(default_factory=ModelConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    catalogue: CatalogueConfig = field(default_factory=CatalogueConfig)
    store: InterestStoreConfig = field(default_factory=InterestStoreConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    ranking: RankingConfig = field(default_factory=RankingConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.timeout_seconds > 0, "timeout_seconds", self.timeout_seconds, "above 0")
        places, longest = self.model.positions, self.batch.max_history
        require(
            places == 0 or places >= longest, "model.positions", places, f"0, or batch.max_history ({longest}) or more"
        )


class _Best(NamedTuple):
    """The epoch of a span that is kept, so far."""

    epoch: int
    quality: float
    losses: tuple[float, float]
    growth: Growth
    detections: list[Detection]
    snapshot: Snapshot | None  # None keeps the last state

    def record(self) -> dict[str, float | None]:
        told = zip(("loss", "retention_loss", "validation"), (*self.losses, self.quality), strict=True)
        return {name: None if math.isnan(value) else value for name, value in told}


class Trainer:
    """One rank of a run.

    Args:
        config: the whole tree.
        dataset: the prepared data that it names.
        topology: this rank's place.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset, topology: Topology) -> None:
        self.config, self.dataset, self.topology = config, dataset, topology
        self.buckets = topology.buckets(dataset.buckets)
        self.strategy = build_strategy(config.strategy)
        self.reporter = Reporter(topology.rank == 0)
        self.model = Recommender(
            self.strategy.interests,
            *(config.model, config.catalogue, config.store, config.engine, config.ranking),
            items=dataset.items_by_span[0],
            bucket_offsets=dataset.bucket_offsets,
            seed=config.seed,
            topology=topology,
            events=config.run_dir / "events",
        )
        self.evaluator = Evaluator(
            *(dataset, self.model.store, self.model.catalogue, self.model.ranker, topology, config.batch, config.eval),
            seed=config.seed,
        )
        self.detections: list[Detection] = []  # of the span at hand
        self.step = 0
        self.good = "the state before training"

    def run(self) -> list[dict[str, Any]]:
        """Trains and tests all spans; collective.

        Returns:
            The lines of metrics.jsonl: one for each of the spans 1 to T - 1, tested on the span after it.

        Raises:
            FloatingPointError: for a loss that is not finite, naming span, epoch, step, ranks and the last good state.
        """
        self.learn(0)
        return self.go_on()

    def go_on(self) -> list[dict[str, Any]]:
        """Trains and tests the spans after the pre-training one; collective.

        Returns:
            As `run`.
        """
        return [self._record(span, self.learn(span) | self.test(span + 1)) for span in range(1, self.dataset.spans - 1)]

    def learn(self, span: int) -> dict[str, Any]:
        """Takes in the span after the last one, as the strategy says; collective.

        Args:
            span: 0 is the pre-training span.

        Returns:
            What `fit` tells, where the strategy trains.
        """
        data = self._open(span)
        self.model.catalogue.grow(self.dataset.items_by_span[span])
        self.detections = []
        told = self.fit(data) if self.strategy.updates(span) else _UNTRAINED | Growth().record()
        keep = self.config.training.export
        if keep == "every" or (keep == "last" and span == self.dataset.spans - 2):
            self._export(span)
        return told

    def fit(self, data: SpanData) -> dict[str, Any]:
        """Trains on one span with early stopping, writes its users' interests back and trims them; collective.

        Args:
            data: the span; 0 is the pre-training span.

        Returns:
            Of the state that is kept, None without targets: ``loss`` and ``retention_loss`` (means over targets) and
            ``validation`` (the metric that stopped training); ``train_seconds``, and the account of interests.
        """
        begin, span, training = time.perf_counter(), data.span, self.config.training
        self.model.admit(data)
        self.model.set_learning_rates(pretraining=span == 0)
        detector, growth, detections = self.strategy.interests.detector, Growth(), list[Detection]()
        best = _Best(0, -math.inf, (math.nan, math.nan), growth, detections, None)
        for epoch in range(training.incremental_epochs if span else training.epochs):
            if detector.enabled and span and (epoch == 0 or detector.each_epoch):
                detection, detected = self._detect(data, epoch)
                growth, detections = growth + detected, [*detections, detection]
            losses = self._train(data, epoch)
            quality = self._validate(data)
            # NaN without validation targets. Equal ranks are no progress, whatever order their gains were summed in.
            better = not quality <= best.quality + _ROUNDING or training.patience == 0
            if better:
                snapshot = self.model.snapshot() if training.patience else None
                best = _Best(epoch, quality, losses, growth, detections, snapshot)
                self.good = f"span {span} after epoch {epoch}"
            self.model.engine.log({f"validation/{training.metric}": quality}, self.step)
            logger.info(
                "span %d, epoch %d: loss %.4f, validation %s %.4f%s",
                *(span, epoch, losses[0], training.metric, quality, " (best)" if better else ""),
            )
            if epoch - best.epoch >= training.patience > 0:
                break
        if best.snapshot:
            self.model.restore(best.snapshot)
        growth = (best.growth + self._write_back(data) + self.model.trim(span)).summed(self.topology)
        self.good = f"span {span}, trained"
        self.detections = best.detections
        if math.isnan(best.quality):
            logger.warning("span %d has no validation targets: all its epochs were trained and the last is kept", span)
        return best.record() | {"train_seconds": time.perf_counter() - begin} | growth.record()

    def test(self, span: int) -> dict[str, Any]:
        """Tests the model as it stands on a span that it has not seen; collective.

        Args:
            span: the span after the last trained one.

        Returns:
            The metrics, and ``eval_seconds``.
        """
        self.model.catalogue.grow(self.dataset.items_by_span[span])
        self.model.engine.train(False)
        return self.evaluator.test(span, self._follow)

    def _detect(self, data: SpanData, epoch: int) -> tuple[Detection, Growth]:
        """Gives new interests to the users whom the detector singles out."""
        self.model.engine.train(False)
        with torch.no_grad():
            batches = self._follow(data.trainable(), f"detector in span {data.span}", self.config.batch.eval_size)
            return self.model.detect(batches, data.span, self.dataset.items_by_span[data.span - (epoch == 0)])

    def _train(self, data: SpanData, epoch: int) -> tuple[float, float]:
        """One epoch; returns the mean loss per target over the world, and the retainer's part beside it."""
        batches, totals, targets = data.training(epoch), torch.zeros(2, dtype=torch.float64), 0
        self.model.engine.train(True)
        for step, batch in enumerate(self._follow(batches, f"span {data.span}, epoch {epoch}", self.config.batch.size)):
            losses = self.model.update(batch)
            if not losses.isfinite().all():
                ranks = (~losses.isfinite().all(1)).nonzero().flatten().tolist()
                raise FloatingPointError(
                    f"the loss of rank(s) {ranks} is not finite in span {data.span}, epoch {epoch}, step {step} of "
                    f"{len(batches)}; the last good state is {self.good}: lower the learning rates or look at the data"
                )
            losses = losses.sum(0).cpu()
            totals, targets, self.step = totals + losses, targets + batch.world_targets, self.step + 1
            loss, retention = (losses / max(batch.world_targets, 1)).tolist()
            self.model.engine.log({"train/loss": loss, "train/retention_loss": retention}, self.step)
        loss, retention = (totals / targets).tolist() if targets else (math.nan, math.nan)
        return loss, retention

    def _validate(self, data: SpanData) -> float:
        """The mean over all ranks' validation targets of the metric that stops training early."""
        sums = torch.zeros(2, dtype=torch.float64)
        self.model.engine.train(False)
        with torch.no_grad():
            batches = data.validation(self.config.training.validation_users)
            for batch in self._follow(batches, f"validation of span {data.span}", self.config.batch.eval_size):
                extraction = self.model.extract(batch)
                ndcg, top = self.config.training.metric == "ndcg", max(self.config.eval.top)
                known = self.dataset.items_by_span[data.span]
                asked = extraction.interests, batch.targets, extraction.targets, known
                ranks = self.model.ranker.ranks(*asked, top if ndcg else None)
                gain = discount(ranks, top) if ndcg else 1 / ranks
                sums += torch.tensor([gain.sum().item(), len(ranks)], dtype=torch.float64)
        total, users = self.topology.sum(sums).tolist()
        return total / users if users else math.nan

    def _write_back(self, data: SpanData) -> Growth:
        """Stores H_u^t of the span's users, from all they did in it; tells how far existing interests turned."""
        growth = Growth()
        self.model.engine.train(False)
        with torch.no_grad():
            for batch in self._follow(data.everything(), f"interests of span {data.span}", self.config.batch.eval_size):
                interests, start, existing, *_ = self.model.extract(batch)
                self.model.store.scatter(batch.users - self.model.store.first_user, interests)
                cosine = torch.cosine_similarity(start.interests.vectors, interests.vectors, dim=-1)
                growth.existing += existing.sum().item()
                growth.cosine += cosine[existing].double().sum().item()
        return growth

    def _export(self, span: int) -> None:
        items = self.dataset.items_by_span[span]
        export_span(
            self.config.run_dir,
            span,
            self.model.store,
            self.model.catalogue,
            items,
            self.dataset.digest,
            self.detections,
        )

    def _open(self, span: int) -> SpanData:
        return SpanData(self.dataset, span, self.buckets, self.config.batch, self.config.seed, self.topology.sum)

    def _follow(self, batches: Any, phase: str, users: int) -> Any:
        return self.reporter.moved(batches, self.topology.device, phase, users)

    def _record(self, span: int, measured: dict[str, Any]) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        line = {
            "strategy": self.config.strategy.name,
            "base": self.config.model.base,
            "seed": self.config.seed,
            "span": span,
            "test_span": span + 1,
            **measured,
            **census(self.model.store, self.topology),
        }
        rates = {f"test/{name}": value for name, value in measured.items() if "@" in name and value is not None}
        self.model.engine.log(rates, self.step)
        if self.topology.rank == 0:
            with (self.config.run_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        return line
