"""A refresh from new files to a publication: the one loop, its exit status and its line for a scheduler."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dist_imsr.checks import require
from dist_imsr.config import resolve
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.input_files import find_files
from dist_imsr.data.prepare import PrepareConfig
from dist_imsr.distributed.command import BAD_INPUT, FAILED, INTERRUPTED, REQUEUE, Stopped, run
from dist_imsr.distributed.signals import StopSignals
from dist_imsr.distributed.topology import read_topology
from dist_imsr.evaluation.index import ExportConfig
from dist_imsr.evaluation.metrics import Metrics
from dist_imsr.evaluation.recommend import RecommendConfig
from dist_imsr.files import digest_of
from dist_imsr.refresh import steps
from dist_imsr.refresh.config import RefreshConfig
from dist_imsr.refresh.publication import Publication, current, record_of
from dist_imsr.refresh.quality import Quality, quality_of
from dist_imsr.refresh.steps import Steps
from dist_imsr.training.checkpoint import name_of
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.folder import lock_folder
from dist_imsr.training.run import check
from dist_imsr.training.storage import Stored

logger = logging.getLogger(__name__)
Section = TypeVar("Section")

HELD = 3  # the model is trained, but not good enough to be published
LOG, LOCK = "refresh.log", ".refresh.lock"  # in the run's folder
_OUTCOMES = {HELD: "held", BAD_INPUT: "refused", FAILED: "failed", REQUEUE: "stopped", INTERRUPTED: "stopped"}


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
        except (ValueError, OSError, Stopped) as error:
            report.reason = str(error)
            raise

    status = run("refresh", work, "interrupted; the same command continues")
    print(report.line(status), flush=True)
    return status


@dataclass
class Report:
    """What a refresh did.

    Args:
        append: the counts of the appended files; None if there were none.
        quality: of the newest tested span; None if no span was tested.
        published: the contents of publication.json of the current publication and its folder; None without any.
        newly: whether this refresh published it.
        seconds: that each step took, by its name; done ones are missing.
        reason: why the refresh ended early, or published nothing.
    """

    append: dict[str, Any] | None = None
    quality: Quality | None = None
    published: dict[str, Any] | None = None
    newly: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    reason: str | None = None

    def line(self, status: int) -> str:
        """The line for a scheduler.

        Args:
            status: the exit status.
        """
        quality = None if self.quality is None else asdict(self.quality) | {"ratio": self.quality.ratio}
        done = "published" if self.newly else "unchanged" if not self.seconds else "trained"
        values = {
            "outcome": _OUTCOMES.get(status, done),
            "status": status,
            "reason": self.reason,
            "append": self.append,
            "quality": quality,
            "published": self.published,
            "seconds": self.seconds,
        }
        return json.dumps(values)


def _refresh(config: RefreshConfig, report: Report) -> None:
    ranks = read_topology().world_size
    require(ranks == 1, "ranks", ranks, "one process that starts the others: use python")
    work = _Refresh(config, report)
    lock = lock_folder(config.run_dir, "run_dir", LOCK)
    try:
        with StopSignals() as signals, signals.deferred():
            work.run(Steps(config.run_dir / LOG, signals, report.seconds))
    finally:
        os.close(lock)


class _Refresh:
    """The steps of one refresh.

    Args:
        config: of the command.
        report: what is done is added to it.

    Raises:
        ValueError: naming the key, for arguments that a step would refuse.
    """

    def __init__(self, config: RefreshConfig, report: Report) -> None:
        self.config, self.report = config, report
        places = [f"--data.path={config.data}", f"--run_dir={config.run_dir}"]
        train = self.train = _resolved("train", TrainConfig, [*config.train, *places, "--training.until=newest"])
        require(not train.overwrite, "train: overwrite", True, "false: a refresh resumes its run")
        require(train.resume != "never", "train: resume", train.resume, "auto: a refresh resumes its run")
        require(train.checkpoint.enabled, "train: checkpoint.enabled", False, "true: a refresh resumes its run")
        require(train.training.spans is None, "train: training.spans", train.training.spans, "all spans")
        require(train.training.export != "none", "train: training.export", "none", "last or every")
        metrics = sorted(Metrics(train.eval.top).result().keys() - {"users"})
        metric = config.refresh.metric
        require(metric in metrics, "refresh.metric", metric, f"a metric of train's eval.top: {', '.join(metrics)}")
        if config.publish.folder is not None:
            config.publish.folder.mkdir(parents=True, exist_ok=True)
            self._recommend_config(config.publish.folder / ".recommendations.parquet")
            self._export_config(config.publish.folder / ".export")
            self._report_published()

    def run(self, steps: Steps) -> None:
        """Takes the steps that are not done.

        Raises:
            Stopped: after a stop signal, if a step failed, or if the model is not good enough.
        """
        self.steps = steps
        self._append()
        dataset, stored = self._train()
        quality = self.report.quality = quality_of(stored.manifest["progress"]["lines"], self.config.refresh)
        if quality is not None:
            logger.info("%s", quality)
        objection = quality.objection if quality is not None else None
        if objection is None:
            self._publish(dataset, stored)
        if objection is not None:
            raise Stopped(f"not published: {objection}", HELD)

    def _append(self) -> None:
        """Appends the input files that the data set does not have."""
        config = self.config
        if config.input is None:
            return
        digests = {path: digest_of(path) for path in find_files(_listed(config.input))}
        ...

    def _train(self) -> tuple[Dataset, Stored]:
        """Tests the model on new spans and trains it on them; returns the data and the state after the last span."""
        dataset, stored = self._trained()
        if stored is None:
            self.steps.run("train", steps.train, self.train, self.config.ranks)
            dataset, stored = self._trained()
        else:
            logger.info("train: span %d was trained before", dataset.spans - 1)
        if stored is None:
            raise Stopped(f"train: {self.config.data} has changed meanwhile; start the same command again", FAILED)
        return dataset, stored

    def _trained(self) -> tuple[Dataset, Stored | None]:
        """The prepared data, and the state of the run after their last span if there is one."""
        dataset, candidates = check(self.train)
        newest = candidates.sound[0] if candidates.sound else None
        complete = newest is not None and newest.folder.name == name_of(dataset.spans, epoch=0, step=0)
        return dataset, newest if complete else None

    def _publish(self, dataset: Dataset, stored: Stored) -> None:
        """Writes recommendations and export of the newest state, and makes them the current ones."""
        config, span = self.config.publish, dataset.spans - 1
        if config.folder is None:
            return
        identity = {"model": stored.manifest["files"], "recommend": config.recommend, "export": config.export}
        publication = Publication(config.folder, span, identity)
        if publication.published:
            logger.info("publish: span %d was published before", span)
        else:
            if config.recommend is not None:
                publication.add("recommendations.parquet", self._recommend)
            if config.export is not None:
                publication.add("export", self._export)
            quality = None if self.report.quality is None else asdict(self.report.quality)
            publication.publish({"span": span, "end_second": dataset.entries[span].end_second, "quality": quality})
            self.report.newly = True
            logger.info("publish: %s names %s", config.folder / "current", publication.path.name)
        publication.remove_older(config.keep)
        self._report_published()

    def _recommend(self, output: Path) -> None:
        self.steps.run("recommend", steps.recommend, self._recommend_config(output), self.config.ranks)

    def _export(self, output: Path) -> None:
        self.steps.run("export", steps.export, self._export_config(output))

    def _recommend_config(self, output: Path) -> RecommendConfig:
        return _resolved("publish.recommend", RecommendConfig, self._of_run(self.config.publish.recommend, output))

    def _export_config(self, output: Path) -> ExportConfig:
        return _resolved("publish.export", ExportConfig, self._of_run(self.config.publish.export, output))

    def _of_run(self, arguments: list[str] | None, output: Path) -> list[str]:
        return [*(arguments or []), f"--run_dir={self.config.run_dir}", f"--output={output}"]

    def _report_published(self) -> None:
        assert self.config.publish.folder is not None
        path = current(self.config.publish.folder)
        self.report.published = None if path is None else {"folder": str(path), **record_of(path)}


def _resolved(key: str, tree: type[Section], arguments: Sequence[str]) -> Section:
    try:
        return resolve(tree, arguments)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
