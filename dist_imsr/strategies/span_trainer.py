"""The steps that strategies are made of, for one rank's model and the span at hand."""

import gc
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from dist_imsr import logs
from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.joined import JoinedSpans
from dist_imsr.data.span import SpanData
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.distributed.interest_store import InterestStoreConfig
from dist_imsr.distributed.recommender import Objective, Recommender
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.metrics import discount
from dist_imsr.evaluation.ranking import Ranker, RankingConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.phases import Phase
from dist_imsr.progress import Reporter
from dist_imsr.strategies.growth import Growth
from dist_imsr.strategies.progress import Best, Progress

logger = logging.getLogger(__name__)

_ROUNDING = 1e-12

Span = SpanData | JoinedSpans
SpanReport = dict[str, Any]
"""The keys of metrics.jsonl that tell of a span's training."""


class Sections(Protocol):
    """The part of a run's configuration that training reads."""

    run_dir: Path
    seed: int
    model: ModelConfig
    training: Any
    checkpoint: Any
    batch: BatchConfig
    catalogue: CatalogueConfig
    store: InterestStoreConfig
    engine: EngineConfig
    ranking: RankingConfig
    eval: EvalConfig


class StopRequested(Exception):
    """All ranks agreed to stop, since one of them was asked to.

    Args:
        status: the exit status that the signal asks for.
        resumable: whether the state as it is may be saved.
    """

    def __init__(self, status: int, resumable: bool) -> None:
        super().__init__(f"stop with status {status}")
        self.status, self.resumable = status, resumable


class SpanTrainer:
    """One rank's model, and the steps of training it on a span.

    Args:
        config: the run's sections.
        dataset: the prepared data.
        topology: this rank's place.
        reporter: shows progress.
        save: writes a checkpoint of the state as it is.
        wait_for_save: returns once nothing reads the state any more.
        trace: passes the batches of an epoch through and traces some of them; takes the batches, the span and the
            number of steps.
        stop_signal: this rank's request to stop, 0 for none; without it the ranks do not ask each other.
    """

    model: Recommender
    ranker: Ranker

    def __init__(
        self,
        config: Sections,
        dataset: Dataset,
        topology: Topology,
        reporter: Reporter,
        *,
        save: Callable[[], None] = lambda: None,
        wait_for_save: Callable[[], None] = lambda: None,
        trace: Callable[[Iterable[Any], int, int], Iterable[Any]] = lambda batches, span, steps: batches,
        stop_signal: Callable[[], int] | None = None,
    ) -> None:
        self.config, self.dataset, self.topology, self.reporter = config, dataset, topology, reporter
        self.buckets = topology.buckets(dataset.buckets)
        self.progress = Progress()
        self.last_good_state = "the state before training"
        self._save, self._wait_for_save, self._trace, self._stop_signal = save, wait_for_save, trace, stop_signal
        self._started = 0.0

    # The model and its data.

    @Phase("building")
    def build_model(self, items: Sequence[int], capacity: int | None = None) -> None:
        """Makes a model of new parameters; collective.

        Args:
            items: the number of items known by the end of each span so far.
            capacity: the table's rows, as in `Recommender`.
        """
        config = self.config
        self.model = Recommender(
            model=config.model,
            catalogue=config.catalogue,
            store=config.store,
            engine=config.engine,
            items=items,
            bucket_offsets=self.dataset.bucket_offsets,
            seed=config.seed,
            topology=self.topology,
            events=config.run_dir / "events",
            capacity=capacity,
        )
        self.ranker = Ranker(self.model.catalogue, self.topology, config.model.score, config.ranking)

    def rebuild_model(self, span: int) -> None:
        """Frees the model, whose parts refer to each other, and makes a new one for a span; collective.

        Args:
            span: whose items are known.
        """
        self._wait_for_save()
        self.model.engine.close()
        del self.model, self.ranker
        gc.collect()
        self.build_model([self.dataset.items_by_span[span]])
        self.model.engine.purge_events(self.progress.steps + 1)  # events of this span from a process that was killed

    def add_items(self, span: int) -> None:
        """Gives a row to every item known by the end of a span; collective.

        Args:
            span: the span.
        """
        self.model.grow(self.dataset.items_by_span[span])

    def open_span(self, span: int, kind: Callable[..., Any] = SpanData, **options: Any) -> Any:
        """Opens the interactions of a span, from where ``train_seconds`` are counted; collective.

        Args:
            span: the span.
            kind: `SpanData`, or another class with its arguments.
            options: further arguments of it.

        Returns:
            The span's data, of this rank's users.
        """
        with Phase("opening"):
            data = kind(
                self.dataset, span, self.buckets, self.config.batch, self.config.seed, self.topology.sum, **options
            )
        self._started = time.perf_counter() - self.progress.seconds
        return data

    def admit_users(self, data: Span, counts: np.ndarray | None = None) -> None:
        """Gives the span's new users their first interests.

        Args:
            data: the span.
            counts: ``[n]``, how many each of ``data.users`` gets; ``model.interests`` by default, and where it is 0.
        """
        self.model.admit(data.users, data.span, counts)

    def set_learning_rates(self, pretraining: bool) -> None:
        """Sets the learning rates of the table and of the dense weights.

        Args:
            pretraining: those of pre-training, or the incremental ones.
        """
        self.model.set_learning_rates(pretraining)

    # Epochs and early stopping.

    def pretrain(self, objective: Objective) -> SpanReport:
        """Trains a new model on span 0, the same way under every strategy; collective.

        Args:
            objective: the strategy.

        Returns:
            The report.
        """
        self.add_items(0)
        data = self.open_span(0)
        self.admit_users(data)
        self.set_learning_rates(pretraining=True)
        for _ in self.epochs(pretraining=True):
            loss = self.train_epoch(data, objective)
            self.end_epoch(loss, self.validate(data, objective))
        self.restore_best()
        self.write_back(data, objective)
        return self.report()

    def epochs(self, pretraining: bool) -> Iterator[int]:
        """The epochs of a span that are left, until validation stops improving.

        Args:
            pretraining: whether ``training.epochs`` bounds them, or ``training.incremental_epochs``.

        Yields:
            The number of the epoch, which `end_epoch` must end.
        """
        training = self.config.training
        most, patience = training.epochs if pretraining else training.incremental_epochs, training.patience
        while self.progress.epoch < most and not 0 < patience < self.progress.epoch - self.progress.best.epoch:
            yield self.progress.epoch
        if math.isnan(self.progress.best.quality):
            span = self.progress.span
            logger.warning("span %d has no validation targets: all its epochs were trained and the last is kept", span)

    @Phase("training", shown=True)
    def train_epoch(self, data: Span, objective: Objective, prefetch: bool = True) -> tuple[float, float]:
        """Trains the rest of an epoch; collective.

        Args:
            data: the span.
            objective: the strategy.
            prefetch: whether the next step's rows are requested during a step; only where embeddings are the table's.

        Returns:
            The epoch's mean losses per target over all ranks: Eq. 6, and the extra loss; NaN without targets.

        Raises:
            FloatingPointError: for a loss that is not finite, naming span, epoch, step, ranks and the last good state.
            StopRequested: where a rank was asked to stop.
        """
        progress, every_steps = self.progress, self.config.checkpoint.every_steps
        steps = data.training(progress.epoch)
        self.model.engine.train(True)
        where, left = f"span {progress.span}, epoch {progress.epoch}", steps.after(progress.step)
        pairs = self.reporter.track(
            left.on(self.topology.device), len(left), f"training in {where}", self.config.batch.size
        )
        for batch, following in self._trace(pairs, progress.span, len(left)):
            signal = self._stop_signal() if self._stop_signal is not None else 0
            reported = self.model.train_step(
                batch, following if prefetch else None, objective=objective, stop_signal=signal
            ).cpu()
            if not reported.isfinite().all():
                ranks = (~reported.isfinite().all(1)).nonzero().flatten().tolist()
                raise FloatingPointError(
                    f"the loss of rank(s) {ranks} is not finite in {where}, step {progress.step} of {len(steps)}; the "
                    f"last good state is {self.last_good_state}: lower the learning rates or look at the data"
                )
            loss, extra = reported[:, :2].sum(0).tolist()
            progress.losses = progress.losses[0] + loss, progress.losses[1] + extra
            progress.targets += batch.world_targets
            progress.step, progress.steps = progress.step + 1, progress.steps + 1
            logs.at(span=progress.span, step=progress.steps)
            targets = max(batch.world_targets, 1)
            events = {"train/loss": loss / targets, "train/retention_loss": extra / targets}
            self.model.engine.log(events, progress.steps)
            self._stop_if_requested(int(reported[:, 2].max()), resumable=True)
            if every_steps and progress.step % every_steps == 0 and progress.step < len(steps):
                self._save()
        loss, extra = progress.losses
        return (loss / progress.targets, extra / progress.targets) if progress.targets else (math.nan, math.nan)

    @Phase("validation", shown=True)
    def validate(self, data: Span, objective: Objective) -> float:
        """The metric that stops training early, on each user's second last interaction of the span; collective.

        Args:
            data: the span.
            objective: the strategy.

        Returns:
            The mean over all ranks' users; NaN without validation targets.
        """
        sums = torch.zeros(2, dtype=torch.float64)
        self.model.engine.train(False)
        ndcg, top = self.config.training.metric == "ndcg", max(self.config.eval.top)
        items = self.dataset.items_by_span[data.span]
        with torch.no_grad():
            steps = data.validation(self.config.training.validation_users)
            phase = f"validation in span {data.span}, epoch {self.progress.epoch}"
            # A run that resumes before the first step runs the detector again, so nothing is saved there.
            resumable = self.progress.step > 0
            for batch in self.track(steps, phase, self.config.batch.eval_size, resumable):
                extraction = objective.extract(self.model, batch)
                ranks = self.ranker.ranks(
                    extraction.interests, batch.targets, extraction.targets, items, top if ndcg else None
                )
                gain = discount(ranks, top) if ndcg else 1 / ranks
                sums += torch.tensor([gain.sum().item(), len(ranks)], dtype=torch.float64)
        total, users = self.topology.sum(sums).tolist()
        return total / users if users else math.nan

    def end_epoch(self, losses: tuple[float, float], quality: float) -> None:
        """Early stopping: keeps the state if it is the best one, and turns to the next epoch; collective.

        Args:
            losses: as `train_epoch` returns them.
            quality: as `validate` returns it.
        """
        progress, training = self.progress, self.config.training
        # NaN without validation targets. Equal ranks are no progress, whatever order their gains were summed in.
        better = not quality <= progress.best.quality + _ROUNDING or training.patience == 0
        if better:
            self._free_best()
            progress.best = Best(
                epoch=progress.epoch,
                quality=quality,
                losses=losses,
                growth=progress.growth,
                detections=len(progress.detections),
                snapshot=self.model.snapshot() if training.patience else None,
            )
            self.last_good_state = f"span {progress.span} after epoch {progress.epoch}"
        self.model.engine.log({f"validation/{training.metric}": quality}, progress.steps)
        logger.info(
            "span %d, epoch %d: loss %.4f, validation %s %.4f%s",
            progress.span,
            progress.epoch,
            losses[0],
            training.metric,
            quality,
            " (best)" if better else "",
        )
        self.progress = replace(progress, epoch=progress.epoch + 1, step=0, losses=(0.0, 0.0), targets=0)
        self._save()

    def restore_best(self) -> None:
        """Puts the best epoch's state back, its account of interests too."""
        best = self.progress.best
        if best.snapshot:
            self.model.restore(best.snapshot)
        self.progress = replace(
            self.progress, growth=best.growth, detections=self.progress.detections[: best.detections]
        )

    # What ends a span.

    @Phase("write-back", shown=True)
    def write_back(self, data: Span, objective: Objective) -> None:
        """Stores H_u^t of the span's users, extracted from all their interactions in it; collective.

        A base model that keeps a state sees a user's interactions once each, one piece of the span after the other.

        Args:
            data: the span.
            objective: the strategy.
        """
        growth, model = Growth(), self.model
        steps = data.pieces() if model.extractor.state_dim else data.everything()  # type: ignore[union-attr]
        model.engine.train(False)
        with torch.no_grad():
            for batch in self.track(steps, f"write-back of span {data.span}", self.config.batch.eval_size):
                interests, start, existing, *_ = objective.extract(model, batch)
                model.store.scatter(batch.users - model.store.first_user, interests)
                cosine = torch.cosine_similarity(start.interests.vectors, interests.vectors, dim=-1)
                growth.existing += existing.sum().item()
                growth.cosine += cosine[existing].double().sum().item()
        self.add_growth(growth)

    def add_growth(self, growth: Growth) -> None:
        """Adds to the span's account of interests.

        Args:
            growth: of this rank.
        """
        self.progress.growth = self.progress.growth + growth

    def report(self) -> SpanReport:
        """The span's report, once its interests are written back; collective.

        Returns:
            Of the state that is kept, None without targets: ``loss`` and ``retention_loss`` (means over targets) and
            ``validation`` (the metric that stopped training); ``train_seconds``, and the account of interests.
        """
        growth = self.progress.growth.summed(self.topology)
        self.last_good_state = f"span {self.progress.span}, trained"
        return self.progress.best.record() | {"train_seconds": self.seconds()} | growth.record()

    def untrained_report(self) -> SpanReport:
        """The report of a span in which nothing is trained or written."""
        return Best().record() | {"train_seconds": 0.0} | Growth().record()

    # What all steps share.

    def track(self, steps: Any, phase: str, users: int, resumable: bool = False) -> Iterator[Any]:
        """Moves the batches of a phase other than training to the device, until all ranks agree to stop; collective.

        Args:
            steps: the batches.
            phase: its name.
            users: of a global step, on average.
            resumable: whether the state may be saved between two batches.

        Yields:
            The batches.

        Raises:
            StopRequested: where a rank was asked to stop.
        """
        for batch in self.reporter.on_device(steps, self.topology.device, phase, users):
            yield batch
            if self._stop_signal is not None:
                signal = torch.tensor([self._stop_signal()], device=self.topology.device)
                self._stop_if_requested(int(self.topology.gather(signal).max()), resumable)

    def seconds(self) -> float:
        """Seconds of training in the span so far."""
        return time.perf_counter() - self._started

    def _stop_if_requested(self, status: int, resumable: bool) -> None:
        if status:
            raise StopRequested(status, resumable)

    @Phase("checkpoint")
    def _free_best(self) -> None:
        """Frees the best epoch's copy before a better one is made: each is as large as what is trained."""
        self._wait_for_save()  # which may still write from it
        self.progress.best = replace(self.progress.best, snapshot=None)
