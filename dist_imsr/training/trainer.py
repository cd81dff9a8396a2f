"""The span loop: the strategy trains a span, the next span tests it, a checkpoint saves it.

The next span may come later, with an append: then the checkpoint holds the report of the untested span, and the command
that finds the next span begins with the test.
"""

import json
from typing import Any

from dist_imsr import logs
from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.command import INTERRUPTED, Stopped
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.distributed.signals import StopRequested, StopSignals
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.evaluator import Evaluator
from dist_imsr.evaluation.exported import Origin
from dist_imsr.phases import Phase
from dist_imsr.reporter import Reporter
from dist_imsr.strategies import build_strategy
from dist_imsr.strategies.growth import store_stats
from dist_imsr.strategies.progress import Progress
from dist_imsr.strategies.span_trainer import SpanReport, SpanTrainer
from dist_imsr.training.checkpoint import Checkpoints, name_before_test, name_of, newest_first
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.export import export_span
from dist_imsr.training.profile import Profile
from dist_imsr.training.state import pack, unpack
from dist_imsr.training.storage import Stored


class Trainer:
    """One rank of a run.

    Args:
        config: the whole tree.
        dataset: the prepared data that it names.
        topology: this rank's place.
        checkpoints: writes the run's checkpoints; None for a run without any.
        stored: a checkpoint to resume from.
        signals: the stop signals that this process receives; None to ignore them.
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
        self.config, self.dataset, self.topology, self.checkpoints = config, dataset, topology, checkpoints
        self.strategy = build_strategy(config.strategy)
        self.reporter = Reporter(topology.rank == 0)
        self.profile = Profile(config.run_dir, topology, config.profile)
        self.spans = SpanTrainer(
            config,
            dataset,
            topology,
            self.reporter,
            save=self.save,
            wait_for_save=checkpoints.close if checkpoints is not None else lambda: None,
            trace=self.profile.trace_steps,
            stop_signal=(lambda: signals.status) if signals is not None else None,
            resources=self.strategy.resources(),
        )
        sizes: dict[str, Any] = {
            "items": dataset.items_by_span[0],
            "users_per_bucket": dataset.locals_by_span[0],
            "capacity": None,
        }
        if stored is not None:
            sizes = stored.manifest
        self.spans.build_model([sizes["items"]], sizes["users_per_bucket"], sizes["capacity"])
        if stored is not None and checkpoints is not None:
            self.spans.progress = unpack(stored, self.model, self.strategy, checkpoints.group)
            self.spans.resume_clock()
            self.model.engine.purge_events(self.progress.steps + 1)
            self.spans.last_good_state = f"{stored.folder}"
        self._origin = None if stored is None else stored.folder
        foreign = stored is not None and stored.folder.resolve().parent != (config.run_dir / "checkpoints").resolve()
        self._unchanged = None if foreign else self.checkpoint_name
        """The checkpoint that is not written: that of the state in which this run began or resumed."""

    @property
    def model(self) -> Recommender:
        """The current model; a strategy may replace it."""
        return self.spans.model

    @property
    def progress(self) -> Progress:
        """The position of the run."""
        return self.spans.progress

    @property
    def checkpoint_name(self) -> str:
        """The name of a checkpoint of the current state."""
        if self.progress.untested is not None:
            return name_before_test(self.progress.span)
        return name_of(self.progress.span, self.progress.epoch, self.progress.step)

    def run(self) -> list[dict[str, Any]]:
        """Trains and tests the remaining spans; collective.

        Returns:
            The lines of metrics.jsonl: one for each trained span but the first, once it is tested on the span after it.

        Raises:
            FloatingPointError: for a loss that is not finite, naming span, epoch, step, ranks and the last good state.
            Stopped: after a stop signal, once the state is on the disk.
        """
        last = self.config.training.last(self.dataset.spans)
        try:
            self.test_last_trained()  # if an append brought the span that it is tested on
            self.save()  # that test; also, the checkpoint of another run is this one's first
            while (span := self.progress.span) <= last:
                with self.profile.measure_span(span, resumed=self.progress.begun):
                    self.train_span(span)
                    self.test_last_trained()
                    self.save()
        except StopRequested as request:
            raise self._stopped(request) from None
        if self.checkpoints is not None:
            self.checkpoints.close()
        return self.progress.lines

    def train_span(self, span: int) -> SpanReport:
        """Lets the strategy train a span, and exports the results; collective.

        Args:
            span: the span after the last trained one; 0 is the pre-training span.

        Returns:
            The keys of metrics.jsonl that describe the training.
        """
        logs.at(span, self.progress.steps)
        report = self.strategy.train_span(self.spans, span)
        last = self.config.training.last(self.dataset.spans)
        if self.config.training.export == "every" or (self.config.training.export == "last" and span == last):
            self._export(span)
        self.spans.progress = self.progress.at(span + 1, untested=report if span else None)
        return report

    def test_last_trained(self) -> None:
        """Tests the last trained span on the next one, if the data have it and that is not done; collective.

        Pre-training alone is not tested.
        """
        report, span = self.progress.untested, self.progress.span
        if report is not None and span < self.dataset.spans:
            logs.at(span - 1, self.progress.steps)
            self._record(span - 1, report | self.test(span))

    def test(self, span: int) -> dict[str, Any]:
        """Tests the current model on the next span; collective.

        Args:
            span: the span after the last trained one.

        Returns:
            The metrics, and ``eval_seconds``.
        """
        self.spans.add_items(span)
        self.model.engine.train(False)
        per_user = None
        if self.config.eval.per_user:
            per_user = self.config.run_dir / "users" / f"span={span}.parquet"
            per_user.parent.mkdir(parents=True, exist_ok=True)
        evaluator = Evaluator(
            dataset=self.dataset,
            store=self.model.store,
            catalogue=self.model.catalogue,
            ranker=self.spans.ranker,
            topology=self.topology,
            batch=self.config.batch,
            config=self.config.eval,
            seed=self.config.seed,
            repeats=self.progress.repeats,
            candidates=self.config.repeats.candidates,
        )
        metrics = evaluator.test(span, self.spans.track, per_user)
        self.progress.add_gains(evaluator.candidates, evaluator.gains)
        return metrics

    @Phase("checkpoint")
    def save(self) -> None:
        """Starts to write a checkpoint of the current state, unless checkpoints are off; collective."""
        if self.checkpoints is None or not self.config.checkpoint.enabled or self.checkpoint_name == self._unchanged:
            return
        self.checkpoints.close()  # frees the copies of the previous one
        self.model.engine.flush()
        if self.progress.begun:
            self.progress.seconds = self.spans.seconds()
        tensors, tables, facts = pack(self.model, self.strategy, self.progress)
        facts["span_digests"] = self.dataset.digests[: self.progress.spans_read]
        self.checkpoints.save(self.checkpoint_name, tensors, tables, facts)

    @Phase("export")
    def _export(self, span: int) -> None:
        export_span(
            self.config.run_dir,
            store=self.model.store,
            catalogue=self.model.catalogue,
            items=self.dataset.items_by_span[span],
            detections=self.progress.detections,
            origin=Origin(
                span=span,
                data=self.dataset.digest_until(span),
                strategy=self.config.strategy.name,
                writes_all_users=self.strategy.resources().writes_all_users,
                repeats=self.progress.repeats,
            ),
            keep_earlier=self.config.training.export == "every",
        )

    @Phase("recording")
    def _record(self, span: int, metrics: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl: the span is tested."""
        line = {
            "strategy": self.config.strategy.name,
            "base": self.config.model.base,
            "seed": self.config.seed,
            "span": span,
            "test_span": span + 1,
            **metrics,
            **store_stats(self.model.store, self.topology),
        }
        rates = {f"test/{name}": value for name, value in metrics.items() if "@" in name and value is not None}
        self.model.engine.log(rates, self.progress.steps)
        if self.topology.rank == 0:
            with (self.config.run_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        self.progress.lines, self.progress.untested = [*self.progress.lines, line], None

    def _stopped(self, request: StopRequested) -> Stopped:
        """Saves the state if that is possible; the exception explains how to resume."""
        if self.checkpoints is None or not self.config.checkpoint.enabled:
            return Stopped("stopped; checkpoint.enabled is false, so a run starts from the beginning", INTERRUPTED)
        if request.resumable:
            self.save()
        self.checkpoints.close()
        nothing = self._origin or "the beginning, as there is no checkpoint yet"
        newest = next(iter(newest_first(self.checkpoints.folder)), nothing)
        starts_over = self.config.overwrite or self.config.resume == "never"
        command = "the same command, with --resume auto and without --overwrite," if starts_over else "the same command"
        return Stopped(f"stopped; {command} resumes from {newest}", request.status)
