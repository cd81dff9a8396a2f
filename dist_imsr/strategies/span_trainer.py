"""The steps that strategies are made of, for one rank's model and the span at hand."""

import gc
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dist_imsr import logs
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.history import History
from dist_imsr.data.joined import JoinedSpans
from dist_imsr.data.span import SpanData
from dist_imsr.distributed.objective import Objective
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.distributed.signals import StopRequested
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.ranking import Ranker
from dist_imsr.evaluation.repeats import choose_repeats
from dist_imsr.phases import Phase
from dist_imsr.reporter import Reporter
from dist_imsr.strategies.early_stopping import EarlyStopping, describe_epoch, describe_lack
from dist_imsr.strategies.growth import Growth
from dist_imsr.strategies.progress import Best, Progress
from dist_imsr.strategies.resources import Resources
from dist_imsr.strategies.sections import Sections, build_recommender
from dist_imsr.strategies.validation import mean_gain
from dist_imsr.strategies.write_back import write_back

logger = logging.getLogger(__name__)

Span = SpanData | JoinedSpans
SpanReport = dict[str, Any]
"""The keys of metrics.jsonl that describe a span's training."""

_IDS = 1 << 20  # ids that each rank sends at a time
READ_EVERY = 4
"""Steps after which all ranks' losses and stop signals are read together."""


class SpanTrainer:
    """One rank's model, and the steps of training it on a span.

    Args:
        config: the run's sections.
        dataset: the prepared data.
        topology: this rank's place.
        reporter: shows progress.
        save: writes a checkpoint of the current state.
        wait_for_save: returns once no checkpoint reads the state any more.
        trace: wraps the batches of an epoch to profile some of its steps; called with the batches, the span and the
            number of steps.
        stop_signal: returns this rank's exit status if it shall stop, else 0; None if the ranks need not exchange it.
        resources: of the strategy.
    """

    model: Recommender
    ranker: Ranker
    _data: Span

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
        resources: Resources,
    ) -> None:
        self.config, self.dataset, self.topology, self.reporter = config, dataset, topology, reporter
        self.buckets = topology.buckets(dataset.buckets)
        self.progress = Progress()
        self.last_good_state = "the state before training"
        self.early_stopping = EarlyStopping(config.training, wait_for_save)
        self._save, self._wait_for_save, self._trace, self._stop_signal = save, wait_for_save, trace, stop_signal
        self._resources, self._start_time = resources, 0.0

    # The model and its data.

    @Phase("building")
    def build_model(self, items: Sequence[int], users_per_bucket: int, capacity: int | None = None) -> None:
        """Makes a model with new parameters; arguments as in `Recommender`, collective."""
        self.model = build_recommender(
            self.config,
            self.dataset,
            self.topology,
            items,
            users_per_bucket,
            capacity,
            resources=self._resources,
        )
        self.ranker = Ranker(self.model.catalogue, self.topology, self.config.model.scoring, self.config.ranking)

    def rebuild_model(self, span: int) -> None:
        """Frees the model, and makes a new one for what is known by the end of a span; collective."""
        self._wait_for_save()
        self.model.engine.close()
        del self.model, self.ranker
        gc.collect()  # the model's parts refer to each other
        self.build_model([self.dataset.items_by_span[span]], self.dataset.locals_by_span[span])
        self.model.engine.purge_events(self.progress.steps + 1)  # events of this span from a process that was killed

    def add_items(self, span: int) -> None:
        """Extends the item table and the store to all items and users known by the end of a span; collective."""
        self.model.grow(self.dataset.items_by_span[span], self.dataset.locals_by_span[span])

    def open_span(self, span: int, kind: Callable[..., Any] = SpanData, **options: Any) -> Any:
        """Opens a span's interactions of this rank's users, and starts to count ``train_seconds``; collective.

        Args:
            kind: `SpanData`, or another class with the same arguments.
            options: its further arguments.
        """
        with Phase("opening"):
            data = kind(
                self.dataset, span, self.buckets, self.config.batch, self.config.seed, self.topology.sum, **options
            )
            self._data = data
        self.resume_clock()
        return data

    def start_biases(self) -> None:
        """Sets biases to log(1 + interactions to train on so far), those of earlier spans less; collective.

        `epochs` does so before the first one; a span that has begun keeps its own.
        """
        catalogue, model, data = self.model.catalogue, self.config.model, self._data
        if not model.item_bias or self.progress.begun:
            return
        items = catalogue.own_items(range(self.dataset.items_by_span[data.span]))
        counts = torch.from_numpy(self.dataset.popularity(items, data.span, model.popularity_decay))
        ids = torch.from_numpy(data.held_out_items())
        held_out = torch.empty(len(ids), dtype=torch.int64, device=self.topology.device).copy_(ids)
        most = int(self.topology.gather(torch.tensor([len(held_out)], device=self.topology.device)).max())
        for first in range(0, most, _IDS):
            for (part,) in self.topology.gather_jagged([held_out[first : first + _IDS]]):
                place = part.cpu() - items.start
                counts -= torch.bincount(place[(place >= 0) & (place < len(items))], minlength=len(items))
        catalogue.set_column(model.dim, items, counts.log1p())

    def admit_users(self, data: Span, counts: np.ndarray | None = None) -> None:
        """Creates the first interests of the span's new users.

        Args:
            counts: ``[n]``, the number for each of ``data.users``; ``model.interests`` by default, and where it is 0.
        """
        self.model.admit(data.users, data.span, counts)

    def set_learning_rates(self, pretraining: bool) -> None:
        """Sets the learning rates of the table and of the dense weights: of pre-training, or the incremental ones."""
        self.model.set_learning_rates(pretraining)

    # Epochs and early stopping.

    def pretrain(self, objective: Objective) -> SpanReport:
        """Trains a new model on span 0, which every strategy does in the same way; collective."""
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
        """The remaining epochs of a span, until early stopping.

        Args:
            pretraining: whether ``training.epochs`` bounds them, or ``training.incremental_epochs``.

        Yields:
            The number of the epoch; `end_epoch` must be called before the next one.

        Raises:
            RuntimeError: if it was not, as the epochs would never end.
        """
        self.start_biases()
        while not self.early_stopping.stops(self.progress, pretraining):
            epoch = self.progress.epoch
            yield epoch
            if self.progress.epoch == epoch:
                raise RuntimeError(f"the strategy did not call end_epoch in epoch {epoch} of span {self.progress.span}")
        lack = describe_lack(self.progress)
        if lack is not None:
            logger.warning(lack)

    @Phase("training", shown=True)
    def train_epoch(self, data: Span, objective: Objective, prefetch_lookup: bool = True) -> tuple[float, float]:
        """Trains the remaining steps of an epoch; collective.

        Args:
            prefetch_lookup: whether to request the next step's rows during a step; false if `extract` looks up others.

        Returns:
            The epoch's mean losses per target over all ranks: Eq. 6, and the extra loss; NaN without targets.

        Raises:
            FloatingPointError: for a loss that is not finite, naming span, epoch, step, ranks and the last good state.
            StopRequested: if a rank has received a stop signal.
        """
        progress, every_steps = self.progress, self.config.checkpoint.every_steps
        steps = data.training(progress.epoch)
        self.model.engine.train(True)
        where, remaining = f"span {progress.span}, epoch {progress.epoch}", steps.after(progress.step)
        pairs = remaining.on(self.topology.device)
        pairs = self.reporter.track(pairs, len(remaining), f"training in {where}", self.config.batch.size)
        unread = list[tuple[torch.Tensor, int]]()  # this rank's losses, and the world's targets, of each step
        timeout = self.config.timeout_seconds
        try:
            for batch, following in self._trace(pairs, progress.span, len(remaining)):
                losses = self.model.train_step(batch, following, objective=objective, prefetch_lookup=prefetch_lookup)
                unread.append((losses, batch.world_targets))
                done = progress.step + len(unread)
                saves = every_steps > 0 and done % every_steps == 0 and done < len(steps)
                if len(unread) == READ_EVERY or saves or done == len(steps):  # waits for the device and the other ranks
                    stop_signal = self._read_losses(unread, f"{where}, step {{}} of {len(steps)}")
                    unread.clear()
                    self._stop_if_requested(stop_signal, resumable=True)
                if saves:
                    self.topology.set_timeout(timeout)  # ranks may write for unequally long
                    self._save()
                elif not unread:  # all ranks have come so far
                    self.topology.set_timeout(min(timeout, self.config.step_timeout_seconds))
        finally:
            self.topology.set_timeout(timeout)
        return progress.mean_losses()

    def _read_losses(self, unread: Sequence[tuple[torch.Tensor, int]], where: str) -> int:
        """Adds the losses of some steps to the progress, and returns the stop signal of any rank; collective."""
        progress, signal = self.progress, self._stop_signal() if self._stop_signal is not None else 0
        with Phase("losses"):
            own = torch.stack([losses for losses, _ in unread])
            read = self.topology.gather(torch.cat([own, own.new_full((1, own.shape[1]), signal)])).cpu()
        for reported, (_, world_targets) in zip(read[:, :-1].unbind(1), unread, strict=True):
            if not reported.isfinite().all():
                ranks = (~reported.isfinite().all(1)).nonzero().flatten().tolist()
                raise FloatingPointError(
                    f"the loss of rank(s) {ranks} is not finite in {where.format(progress.step)}; the last good state "
                    f"is {self.last_good_state}: lower the learning rates or look at the data"
                )
            loss, extra = reported.sum(0).tolist()
            progress.add_step(loss, extra, world_targets)
            logs.at(span=progress.span, step=progress.steps)
            targets = max(world_targets, 1)
            events = {"train/loss": loss / targets, "train/retention_loss": extra / targets}
            self.model.engine.log(events, progress.steps)
        return int(read[:, -1].max())

    @Phase("validation", shown=True)
    def validate(self, data: Span, objective: Objective) -> float:
        """The validation metric: the mean over all ranks' users, NaN without validation targets; collective."""
        self.model.engine.train(False)
        steps = data.validation(self.config.training.validation_users)
        phase = f"validation in span {data.span}, epoch {self.progress.epoch}"
        # A run that resumes before an epoch's first step detects again, so nothing is saved there.
        batches = self.track(steps, phase, self.config.batch.eval_size, resumable=self.progress.step > 0)
        top = max(self.config.eval.top) if self.config.training.metric == "ndcg" else None
        return mean_gain(self.model, self.ranker, batches, objective, self.dataset.items_by_span[data.span], top)

    def end_epoch(self, losses: tuple[float, float], quality: float) -> None:
        """Ends an epoch with the results of `train_epoch` and `validate`, keeps the best state, saves; collective."""
        progress, metric = self.progress, self.config.training.metric
        better = self.early_stopping.update(progress, self.model, losses, quality)
        if better:
            self.last_good_state = f"span {progress.span} after epoch {progress.epoch}"
        self.model.engine.log({f"validation/{metric}": quality}, progress.steps)
        results = describe_epoch(losses, metric, quality, better)
        logger.info("span %d, epoch %d: %s", progress.span, progress.epoch, results)
        self.progress = replace(progress, epoch=progress.epoch + 1, step=0, losses=(0.0, 0.0), targets=0)
        self._save()

    def restore_best(self) -> None:
        """Restores the best epoch's state; collective."""
        self.progress = self.early_stopping.restore(self.progress, self.model)

    # The end of a span.

    @Phase("write-back", shown=True)
    def write_back(self, data: Span, objective: Objective) -> None:
        """Stores H_u^t of the span's users, extracted from all their interactions in it; collective.

        A base model that keeps a state reads each of them once, in consecutive pieces; the others read a user's latest.
        Before, unless tests have done so, validation chooses what scores add for repeats, if they add anything.
        """
        self._choose_repeats(data, objective)
        steps = data.pieces() if self.model.extractor.state_dim else data.everything()  # type: ignore[union-attr]
        self.model.engine.train(False)
        batches = self.track(steps, f"write-back of span {data.span}", self.config.batch.eval_size)
        self.add_growth(write_back(self.model, batches, objective))

    def _choose_repeats(self, data: Span, objective: Objective) -> None:
        candidates = self.config.repeats.candidates
        if not candidates or self.progress.repeat_gains:
            return
        self.model.engine.train(False)
        steps = data.validation(self.config.training.validation_users)
        self.progress.repeats = choose_repeats(
            candidates=candidates,
            model=self.model,
            ranker=self.ranker,
            batches=self.track(steps, f"repeats of span {data.span}", self.config.batch.eval_size),
            objective=objective,
            history=History(self.dataset, self.buckets, data.span, training=True),
            items=self.dataset.items_by_span[data.span],
            top=max(self.config.eval.top),
        )
        logger.info("span %d: repeats weigh %g, decay %g", data.span, *self.progress.repeats)

    def add_growth(self, growth: Growth) -> None:
        """Adds this rank's numbers to the span's statistics of interests."""
        self.progress.growth = self.progress.growth + growth

    def report(self) -> SpanReport:
        """The report of a span whose interests are written back; collective.

        Returns:
            ``loss`` and ``retention_loss`` (means over targets) and ``validation`` (the metric of early stopping) of
            the best epoch, None without targets; ``train_seconds``; and the statistics of interests.
        """
        growth = self.progress.growth.summed(self.topology)
        self.last_good_state = f"span {self.progress.span}, trained"
        repeats = {f"repeat_{name}": value for name, value in self.progress.repeats._asdict().items()}
        return self.progress.best.record() | {"train_seconds": self.seconds()} | growth.record() | repeats

    def untrained_report(self) -> SpanReport:
        """The report of a span in which nothing is trained or written."""
        return Best().record() | {"train_seconds": 0.0} | Growth().record()

    # Helpers of all steps.

    def track(self, steps: Any, phase: str, users: int, resumable: bool = False) -> Iterator[Any]:
        """Moves the batches of a phase other than training to the device, and shows their speed; collective.

        Args:
            users: the average number of users in a global step.
            resumable: whether the state may be saved between two batches.

        Yields:
            The batches.

        Raises:
            StopRequested: if a rank has received a stop signal.
        """
        for number, batch in enumerate(self.reporter.on_device(steps, self.topology.device, phase, users), 1):
            yield batch
            reads = number % READ_EVERY == 0 or number == len(steps)  # reading waits for the device
            if self._stop_signal is not None and reads:
                signal = torch.tensor([self._stop_signal()], device=self.topology.device)
                self._stop_if_requested(int(self.topology.gather(signal).max()), resumable)

    def resume_clock(self) -> None:
        """Counts ``train_seconds`` from here, on top of those of the span so far."""
        self._start_time = time.perf_counter() - self.progress.seconds

    def seconds(self) -> float:
        """Seconds of training in the span so far."""
        return time.perf_counter() - self._start_time

    def _stop_if_requested(self, status: int, resumable: bool) -> None:
        if status:
            raise StopRequested(status, resumable)
