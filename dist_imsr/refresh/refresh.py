"""A refresh from new files to a publication: the one loop, its exit status and its line for a scheduler."""

import gc
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dist_imsr import devices
from dist_imsr.checks import require
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.input_files import find_files
from dist_imsr.data.preparation import appended_files
from dist_imsr.distributed.command import FAILED, Stopped, run
from dist_imsr.distributed.signals import StopSignals
from dist_imsr.distributed.topology import read_topology
from dist_imsr.evaluation.index import ExportConfig
from dist_imsr.evaluation.recommend import RecommendConfig
from dist_imsr.files import digest_of, locked
from dist_imsr.refresh import steps
from dist_imsr.refresh.commands import Commands
from dist_imsr.refresh.config import RefreshConfig
from dist_imsr.refresh.publication import Publication, current, record_of
from dist_imsr.refresh.quality import quality_of
from dist_imsr.refresh.report import HELD, Report, appended
from dist_imsr.refresh.steps import Steps
from dist_imsr.training.run import check
from dist_imsr.training.storage import Stored

logger = logging.getLogger(__name__)
LOG, LOCK = "refresh.log", ".refresh.lock"  # in the run's folder


def refresh(config: RefreshConfig) -> int:
    """Appends, tests, trains and publishes what is not done yet, and prints one line of JSON on standard output.

    Args:
        config: data, run, new files and what is published.

    Returns:
        The exit status: 0; 3 if the model is not good enough to be published; 2 for refused inputs, or if another
        refresh is at work; 1 for failures; 75 after SIGTERM or SIGUSR1 and 130 after Ctrl-C, where the same command
        continues.
    """
    report = Report()

    def work() -> None:
        try:
            _refresh(config, report)
        except BaseException as error:
            report.reason = str(error) or type(error).__name__
            raise

    status = run("refresh", work, "interrupted; the same command continues")
    gc.unfreeze()  # DuckDB would report frozen objects as leaks when Python exits
    print(report.line(status), flush=True)
    return status


def _refresh(config: RefreshConfig, report: Report) -> None:
    ranks, count = read_topology().world_size, devices.device_count()
    require(ranks == 1, "ranks", ranks, "one process that starts the others: use python")
    require(not 0 < count < config.ranks, "ranks", config.ranks, f"at most {count}, a device each")
    commands = Commands(config)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with locked(config.run_dir / LOCK, f"run_dir: another refresh of {config.run_dir} is at work; wait for it"):
        with StopSignals() as signals, signals.deferred():
            _Refresh(config, commands, Steps(config.run_dir / LOG, signals, report.seconds), report).run()


class _Refresh:
    """One refresh.

    Args:
        config: of the command.
        commands: what the steps are called with.
        steps: runs them.
        report: what is done is added to it.
    """

    def __init__(self, config: RefreshConfig, commands: Commands, steps: Steps, report: Report) -> None:
        self.config, self.commands, self.steps, self.report = config, commands, steps, report

    def run(self) -> None:
        """Takes the steps that are not done.

        Raises:
            Stopped: after a stop signal, if a step failed, or if the model is not good enough.
        """
        self._report_published()
        self._append()
        dataset, stored = self._train()
        quality = self.report.quality = quality_of(stored.manifest["progress"]["lines"], self.config.refresh)
        if quality is not None:
            logger.info("%s", quality)
        objection = quality.objection if quality is not None else None
        if objection is None:
            self._publish(dataset, stored)
        self._retire(dataset)
        if objection is not None:
            raise Stopped(f"not published: {objection}", HELD)

    def _append(self) -> None:
        """Appends the input files that the data set does not have."""
        append = self.commands.append
        if append is None:
            return
        files = [Path(path) for path in find_files(append.inputs)]  # the key takes no addresses
        for path in files:
            require(path.is_file(), "input", str(path), "files: a refresh may have to read them again")
        digests = {path: digest_of(path, "xxh128") for path in files}
        known = appended_files(Dataset(DataConfig(self.config.data)), append)
        new = {path: digest for path, digest in digests.items() if digest not in known}
        if len(new) < len(digests):
            logger.info("append: %d of %d file(s) were appended before", len(digests) - len(new), len(digests))
        if new:
            self.steps.run("append", steps.prepare, replace(append, input=[*new]))
        counts = appended(Dataset(DataConfig(self.config.data)), (new or digests).values())
        self.report.append = counts
        logger.info(
            "append: spans %d to %d with %d interactions, %d new users and %d new items, which have %.1f%% of them",
            *counts["spans"],
            *(counts[name] for name in ("interactions", "new_users", "new_items")),
            100 * counts["with_new_items"],
        )

    def _train(self) -> tuple[Dataset, Stored]:
        """Tests the model on new spans and trains it on them; returns the data and the state after the last span."""
        dataset, candidates = check(self.commands.train)
        if candidates.own and candidates.remaining.nothing:
            logger.info("train: span %d was trained before", dataset.spans - 1)
        else:
            self.steps.run("train", steps.train, self.commands.train, self.config.ranks)
            dataset, candidates = check(self.commands.train)
            if not candidates.remaining.nothing:
                raise Stopped(f"train: {dataset.path} has changed meanwhile; start the same command again", FAILED)
        return dataset, candidates.sound[0]

    def _publish(self, dataset: Dataset, stored: Stored) -> None:
        """Writes recommendations and export of the newest state, and makes them the current ones."""
        config, folder, span = self.config.publish, self.config.published, dataset.spans - 1
        recommend, export = self.commands.recommend, self.commands.export
        if recommend is None and export is None:
            return
        publication = Publication(
            folder,
            span,
            {
                "model": stored.manifest["files"],
                "recommend": config.recommend,
                "export": config.export,
                "only_changed": config.only_changed,
            },
        )
        if publication.published:
            logger.info("publish: span %d was published before", span)
        else:
            since = self._published_before(dataset)
            if recommend is not None:
                write = self._writer(steps.recommend, replace(recommend, since=since), self.config.ranks)
                publication.add("recommendations.parquet", write)
            if export is not None:
                publication.add("export", self._writer(steps.export, export, ranks=1))
            quality = None if self.report.quality is None else asdict(self.report.quality)
            end = dataset.entries[span].end_second
            publication.publish({"span": span, "since": since, "end_second": end, "quality": quality})
            self.report.newly = True
            logger.info("publish: %s names %s", folder / "current", publication.path.name)
        publication.remove_older(config.keep)
        self._report_published()

    def _published_before(self, dataset: Dataset) -> int | None:
        """The span since whose publication users may have changed; None for recommendations of all users."""
        before = self.report.published
        if before is None or not self.config.publish.only_changed:
            return None
        known = dataset.first_kept - 1 <= before["span"] < dataset.spans - 1  # who changed since then
        return int(before["span"]) if known else None

    def _writer(
        self, command: Callable[[Any], int], config: RecommendConfig | ExportConfig, ranks: int
    ) -> Callable[[Path], None]:
        """A function that takes a step which writes to a path."""
        return lambda output: self.steps.run(command.__name__, command, replace(config, output=output), ranks)

    def _retire(self, dataset: Dataset) -> None:
        """Deletes the rows of old spans, which are trained."""
        before = dataset.spans - (self.config.keep_spans or dataset.spans)
        if before > dataset.first_kept:
            self.steps.run("retire", steps.prepare, self.commands.retire(before))

    def _report_published(self) -> None:
        path = current(self.config.published)
        self.report.published = None if path is None else {"folder": str(path), **record_of(path)}
