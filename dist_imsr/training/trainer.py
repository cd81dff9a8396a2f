"""The span loop: pre-train, then for every span train, write interests back and test on the next."""

import gc
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from dist_imsr import logs
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.joined import JoinedSpans
from dist_imsr.data.span import SpanData
from dist_imsr.distributed.command import INTERRUPTED, Stopped
from dist_imsr.distributed.signals import StopSignals
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.evaluator import Evaluator
from dist_imsr.evaluation.metrics import discount
from dist_imsr.phases import Phase
from dist_imsr.strategies import build_strategy
from dist_imsr.training.checkpoint import Checkpoints, newest_first
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.detection import Detection, detect
from dist_imsr.training.export import export_span
from dist_imsr.training.growth import Growth, store_stats
from dist_imsr.training.profile import Profile
from dist_imsr.training.progress import Reporter
from dist_imsr.training.recommender import Recommender
from dist_imsr.training.state import Best, Progress, packed, unpack
from dist_imsr.training.storage import Stored

logger = logging.getLogger(__name__)

_ROUNDING = 1e-12
_UNTRAINED = {"loss": None, "retention_loss": None, "validation": None, "train_seconds": 0.0}


class Trainer:
    """One rank of a run.

    Args:
        config: the whole tree.
        dataset: the prepared data that it names.
        topology: this rank's place.
        checkpoints: writes the run's; None for a run that leaves none.
        stored: a checkpoint to go on from.
        signals: tells whether somebody asked the run to stop.
    """

    def __init__(
        self,
        config: TrainConfig,
        dataset: Dataset,
        topology: Topology,
        checkpoints: Checkpoints | None = None,
        stored: Stored | None = None,
        signals: StopSignals | None = None,
    ) -> None:
        self.config, self.dataset, self.topology = config, dataset, topology
        self.checkpoints, self.signals = checkpoints, signals
        self.buckets = topology.buckets(dataset.buckets)
        self.strategy = build_strategy(config.strategy)
        self.reporter = Reporter(topology.rank == 0)
        self.profile = Profile(config.run_dir, topology, config.profile)
        known = dataset.items_by_span[0] if stored is None else stored.manifest["items"]
        passed = [items for items in dataset.items_by_span if items <= known]
        self._build([known] if self.strategy.retrains else passed)
        self.detections: list[Detection] = []  # of the span at hand
        self.progress, self.good = Progress(), "the state before training"
        if stored is not None and checkpoints is not None:
            self.progress = unpack(stored, self.model, dataset.bucket_offsets, self.buckets, checkpoints.group)
            self.model.engine.purge_events(self.progress.steps + 1)
            self.good = f"{stored.folder}"
        self._origin = None if stored is None else stored.folder
        own = stored is not None and stored.folder.resolve().parent == (config.run_dir / "checkpoints").resolve()
        # A run that is stopped where it began to go on has nothing new to save.
        self._resumed = self.progress.name if own else None
        self._begin = 0.0

    def run(self) -> list[dict[str, Any]]:
        """Trains and tests all spans that are left; collective.

        Returns:
            The lines of metrics.jsonl: one for each trained span but the first, tested on the span after it.

        Raises:
            FloatingPointError: for a loss that is not finite, naming span, epoch, step, ranks and the last good state.
            Stopped: where a signal asked for it, once the state is on the disk.
        """
        last = self.config.training.last(self.dataset.spans)
        if self._origin is not None:
            self._save()  # what another run left is this one's first checkpoint
        while (span := self.progress.span) <= last:
            with self.profile.of(span, resumed=self.progress.begun):
                told = self.learn(span)
                if span:
                    self._record(span, told | self.test(span + 1))
                self._save()
        if self.checkpoints is not None:
            self.checkpoints.close()
        return self.progress.lines

    def learn(self, span: int) -> dict[str, Any]:
        """Takes in the span after the last one, as the strategy says; collective.

        Args:
            span: 0 is the pre-training span.

        Returns:
            What `fit` tells, where the strategy trains.
        """
        logs.at(span, self.progress.steps)
        data = self._open(span)
        if self.strategy.retrains and span and not self.progress.begun:
            self._discard()
            self._build([self.dataset.items_by_span[span]])
            self.model.engine.purge_events(self.progress.steps + 1)  # what a process that was killed told of this span
        self.model.grow(self.dataset.items_by_span[span])
        self.detections = []
        told = self.fit(data) if self.strategy.updates(span) else _UNTRAINED | Growth().record()
        keep = self.config.training.export
        last = self.config.training.last(self.dataset.spans)
        if keep == "every" or (keep == "last" and span == last):
            self._export(span)
        self.progress = self.progress.at(span + 1)
        return told

    def fit(self, data: SpanData | JoinedSpans) -> dict[str, Any]:
        """Trains on one span with early stopping, writes its users' interests back and trims them; collective.

        It goes on from where it stands in that span.

        Args:
            data: the span; 0 is the pre-training span.

        Returns:
            Of the state that is kept, None without targets: ``loss`` and ``retention_loss`` (means over targets) and
            ``validation`` (the metric that stopped training); ``train_seconds``, and the account of interests.
        """
        span, training = data.span, self.config.training
        now = self.progress = self.progress if self.progress.span == span else self.progress.at(span)
        self._begin = time.perf_counter() - now.seconds
        counts, anew = self.strategy.counts, span == 0 or self.strategy.retrains
        self.model.admit(data.users, span, counts.of(self.dataset, span, data.users) if counts else None)
        self.model.set_learning_rates(pretraining=anew)
        companion = self.model.companion
        if span and self.strategy.trains(span):
            with Phase("strategy"):
                if not companion.awake:
                    companion.wake()
                companion.begin(data, self.model, self._follow, not now.begun)
        detector, patience = self.strategy.interests.detector, training.patience
        epochs = training.epochs if anew else training.incremental_epochs * self.strategy.trains(span)
        while now.epoch < epochs and not 0 < patience < now.epoch - now.best.epoch:
            if detector.enabled and span and now.step == 0 and (now.epoch == 0 or detector.each_epoch):
                detection, detected = self._detect(data, now.epoch)
                now.growth, now.detections = now.growth + detected, [*now.detections, detection]
            losses = self._train(data)
            quality = self._validate(data)
            # NaN without validation targets. Equal ranks are no progress, whatever order their gains were summed in.
            better = not quality <= now.best.quality + _ROUNDING or patience == 0
            if better:
                self._forget_best()
                ended = now.epoch, quality, losses, now.growth, len(now.detections)
                now.best = Best(*ended, self.model.snapshot() if patience else None)
                self.good = f"span {span} after epoch {now.epoch}"
            self.model.engine.log({f"validation/{training.metric}": quality}, now.steps)
            logger.info(
                "span %d, epoch %d: loss %.4f, validation %s %.4f%s",
                *(span, now.epoch, losses[0], training.metric, quality, " (best)" if better else ""),
            )
            now = self.progress = replace(now, epoch=now.epoch + 1, step=0, losses=(0.0, 0.0), targets=0)
            self._save()
        best = now.best
        if best.snapshot:
            self.model.restore(best.snapshot)
        if companion.awake:
            with Phase("strategy"):
                companion.settle()
        growth = (best.growth + self._write_back(data) + self.model.trim(span)).summed(self.topology)
        self.good = f"span {span}, trained"
        self.detections = now.detections[: best.detections]
        self.progress = now.at(span + 1)
        if epochs and math.isnan(best.quality):
            logger.warning("span %d has no validation targets: all its epochs were trained and the last is kept", span)
        return best.record() | {"train_seconds": time.perf_counter() - self._begin} | growth.record()

    def test(self, span: int) -> dict[str, Any]:
        """Tests the model as it stands on a span that it has not seen; collective.

        Args:
            span: the span after the last trained one.

        Returns:
            The metrics, and ``eval_seconds``.
        """
        self.model.grow(self.dataset.items_by_span[span])
        self.model.engine.train(False)
        users = self.config.run_dir / "users" if self.config.eval.per_user else None
        if users is not None:
            users.mkdir(parents=True, exist_ok=True)
        return self.evaluator.test(span, self._follow, users and users / f"span={span}.parquet")

    @Phase("checkpoint")
    def _forget_best(self) -> None:
        """Frees the best epoch's copy before a better one is made: each is as large as what is trained."""
        if self.checkpoints is not None:
            self.checkpoints.close()  # which may still write from it
        self.progress.best = replace(self.progress.best, snapshot=None)

    @Phase("detector", shown=True)
    def _detect(self, data: SpanData | JoinedSpans, epoch: int) -> tuple[Detection, Growth]:
        """Gives new interests to the users whom the detector singles out."""
        self.model.engine.train(False)
        with torch.no_grad():
            batches = self._follow(data.trainable(), f"detector in span {data.span}", self.config.batch.eval_size)
            trained = self.dataset.items_by_span[data.span - (epoch == 0)]
            parts = self.model.catalogue, self.model.store, self.strategy.interests.detector
            return detect(batches, data.span, trained, *parts)

    @Phase("training", shown=True)
    def _train(self, data: SpanData | JoinedSpans) -> tuple[float, float]:
        """The rest of an epoch; returns its mean loss per target over the world, and the retainer's part beside it."""
        now, often = self.progress, self.config.checkpoint.every_steps
        batches = data.training(now.epoch)
        self.model.engine.train(True)
        place, left = f"span {now.span}, epoch {now.epoch}", batches.after(now.step)
        pairs, phase = left.on(self.topology.device), f"training in {place}"
        given = self.reporter.follow(pairs, len(left), phase, self.config.batch.size)
        for batch, following in self.profile.traced(given, now.span, len(left)):
            told = self.model.update(batch, following, self.signals.status if self.signals else 0).cpu()
            if not told.isfinite().all():
                ranks = (~told.isfinite().all(1)).nonzero().flatten().tolist()
                raise FloatingPointError(
                    f"the loss of rank(s) {ranks} is not finite in {place}, step {now.step} of {len(batches)}; the "
                    f"last good state is {self.good}: lower the learning rates or look at the data"
                )
            loss, retention = told[:, :2].sum(0).tolist()
            now.losses = now.losses[0] + loss, now.losses[1] + retention
            now.targets, now.step, now.steps = now.targets + batch.world_targets, now.step + 1, now.steps + 1
            logs.at(span=now.span, step=now.steps)
            means = loss / max(batch.world_targets, 1), retention / max(batch.world_targets, 1)
            self.model.engine.log(dict(zip(("train/loss", "train/retention_loss"), means, strict=True)), now.steps)
            self._stop_if_requested(int(told[:, 2].max()), keep=True)
            if often and now.step % often == 0 and now.step < len(batches):
                self._save()
        loss, retention = now.losses
        return (loss / now.targets, retention / now.targets) if now.targets else (math.nan, math.nan)

    @Phase("validation", shown=True)
    def _validate(self, data: SpanData | JoinedSpans) -> float:
        """The mean over all ranks' validation targets of the metric that stops training early."""
        sums = torch.zeros(2, dtype=torch.float64)
        self.model.engine.train(False)
        self.model.companion.preview()
        with torch.no_grad():
            batches = data.validation(self.config.training.validation_users)
            phase = f"validation in span {data.span}, epoch {self.progress.epoch}"
            keep = self.progress.step > 0  # a run that resumes before the first step asks the detector again
            for batch in self._follow(batches, phase, self.config.batch.eval_size, keep):
                extraction = self.model.extract(batch)
                ndcg, top = self.config.training.metric == "ndcg", max(self.config.eval.top)
                known = self.dataset.items_by_span[data.span]
                asked = extraction.interests, batch.targets, extraction.targets, known
                ranks = self.model.ranker.ranks(*asked, top if ndcg else None)
                gain = discount(ranks, top) if ndcg else 1 / ranks
                sums += torch.tensor([gain.sum().item(), len(ranks)], dtype=torch.float64)
        self.model.companion.resume()
        total, users = self.topology.sum(sums).tolist()
        return total / users if users else math.nan

    @Phase("write-back", shown=True)
    def _write_back(self, data: SpanData | JoinedSpans) -> Growth:
        """Stores H_u^t of the span's users, from all they did in it; tells how far existing interests turned.

        A base model that keeps a state sees a user's interactions once each, a piece of the span after the other.
        """
        growth, keeps = Growth(), self.model.extractor.state_dim
        batches = data.pieces() if keeps and isinstance(data, SpanData) else data.everything()
        self.model.engine.train(False)
        with torch.no_grad():
            for batch in self._follow(batches, f"write-back of span {data.span}", self.config.batch.eval_size):
                interests, start, existing, *_ = self.model.extract(batch)
                self.model.store.scatter(batch.users - self.model.store.first_user, interests)
                cosine = torch.cosine_similarity(start.interests.vectors, interests.vectors, dim=-1)
                growth.existing += existing.sum().item()
                growth.cosine += cosine[existing].double().sum().item()
        return growth

    @Phase("export")
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

    @Phase("building")
    def _build(self, items: list[int]) -> None:
        """Makes a model of new parameters, for so many items as spans know one after the other."""
        config, dataset = self.config, self.dataset
        self.model = Recommender(
            self.strategy.interests,
            self.strategy.companion(),
            *(config.model, config.catalogue, config.store, config.engine, config.ranking),
            items=items,
            bucket_offsets=dataset.bucket_offsets,
            seed=config.seed,
            topology=self.topology,
            events=config.run_dir / "events",
        )
        parts = self.model.store, self.model.catalogue, self.model.ranker
        self.evaluator = Evaluator(dataset, *parts, self.topology, config.batch, config.eval, seed=config.seed)

    def _discard(self) -> None:
        """Frees the model, whose parts hold each other, before another takes its place."""
        if self.checkpoints is not None:
            self.checkpoints.close()
        self.model.engine.close()
        del self.model, self.evaluator
        gc.collect()

    @Phase("opening")
    def _open(self, span: int) -> SpanData | JoinedSpans:
        given = self.dataset, span, self.buckets, self.config.batch, self.config.seed, self.topology.sum
        return self.strategy.data(*given)

    def _follow(self, batches: Any, phase: str, users: int, keep: bool = False) -> Iterator[Any]:
        """Batches of a phase other than training, until all ranks agree to stop."""
        for batch in self.reporter.moved(batches, self.topology.device, phase, users):
            yield batch
            if self.signals is not None:
                word = torch.tensor([self.signals.status], device=self.topology.device)
                self._stop_if_requested(int(self.topology.gather(word).max()), keep)

    def _stop_if_requested(self, status: int, keep: bool) -> None:
        """Ends the run where a rank was asked to, with the state as it stands where it may be kept."""
        if not status:
            return
        if self.checkpoints is None or not self.config.checkpoint.enabled:
            raise Stopped("stopped; checkpoint.enabled is false, so that a run begins anew", INTERRUPTED)
        if keep:
            self.model.companion.resume()
            self._save()
        self.checkpoints.close()
        nothing = self._origin or "the beginning, as there is no checkpoint yet"
        newest = next(iter(newest_first(self.checkpoints.folder)), nothing)
        anew = self.config.overwrite or self.config.resume == "never"
        command = "the same command, with --resume auto and without --overwrite," if anew else "the same command"
        raise Stopped(f"stopped; {command} goes on from {newest}", status)

    @Phase("checkpoint")
    def _save(self) -> None:
        if self.checkpoints is not None and self.config.checkpoint.enabled and self.progress.name != self._resumed:
            self.checkpoints.wait()
            self.model.engine.flush()
            if self.progress.begun:
                self.progress.seconds = time.perf_counter() - self._begin
            packs = packed(self.model, self.progress, self.dataset.bucket_offsets, self.buckets)
            self.checkpoints.save(self.progress.name, *packs)

    @Phase("recording")
    def _record(self, span: int, measured: dict[str, Any]) -> None:
        """One line of metrics.jsonl."""
        line = {
            "strategy": self.config.strategy.name,
            "base": self.config.model.base,
            "seed": self.config.seed,
            "span": span,
            "test_span": span + 1,
            **measured,
            **store_stats(self.model.store, self.topology),
        }
        rates = {f"test/{name}": value for name, value in measured.items() if "@" in name and value is not None}
        self.model.engine.log(rates, self.progress.steps)
        if self.topology.rank == 0:
            with (self.config.run_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        self.progress.lines = [*self.progress.lines, line]
