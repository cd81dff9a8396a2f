"""The configurations of a refresh's steps; impossible ones are refused before the first step."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from dist_imsr.checks import require
from dist_imsr.config import resolve
from dist_imsr.data.manifest import read_manifest
from dist_imsr.data.prepare import PrepareConfig
from dist_imsr.evaluation.index import ExportConfig, require_faiss
from dist_imsr.evaluation.metrics import Metrics
from dist_imsr.evaluation.recommend import RecommendConfig
from dist_imsr.refresh.config import RefreshConfig
from dist_imsr.training.config import TrainConfig

Section = TypeVar("Section")


class Commands:
    """What the steps of a refresh are called with.

    Args:
        config: of the refresh.

    Raises:
        ValueError: naming the key, for what a step would refuse, or what a refresh cannot do with.
    """

    def __init__(self, config: RefreshConfig) -> None:
        self.config = config
        read_manifest(config.data, "data")  # refuses a folder without data
        self.append: PrepareConfig | None = None
        """For prepare.py, with the files as they are named; None without any."""
        if config.input is not None:
            period = {"from": config.from_, "until": config.until}
            stated = [f"--{key}={value}" for key, value in period.items() if value is not None]
            self.append = replace(
                self._of_data(*stated), input=[*config.input] if isinstance(config.input, list) else config.input
            )
        places = [f"--data.path={config.data}", f"--run_dir={config.run_dir}"]
        self.train = _resolved(
            "train", TrainConfig, [*config.train, *places, "--training.until=newest", "--baselines=false"]
        )
        """For train.py."""
        self._refuse_other_runs()
        recommend, export = config.publish.recommend, config.publish.export
        self.recommend: RecommendConfig | None = None
        """For recommend.py, but for the output; None if there is none."""
        self.export: ExportConfig | None = None
        """For export.py, but for the output; None if there is none."""
        if recommend is not None:
            self.recommend = _resolved("publish.recommend", RecommendConfig, [*recommend, *self._of_run("recommend")])
            for key, span in (("span", self.recommend.span), ("since", self.recommend.since)):
                require(span is None, f"publish.recommend: {key}", span, "none: the newest is published")
        if export is not None:
            require_faiss()
            self.export = _resolved("publish.export", ExportConfig, [*export, *self._of_run("export")])
            require(self.export.span is None, "publish.export: span", self.export.span, "none: the newest is published")

    def retire(self, before: int) -> PrepareConfig:
        """For prepare.py: keeps the rows of the spans from one on."""
        return self._of_data(f"--retire_before={before}")

    def _of_data(self, *arguments: str) -> PrepareConfig:
        return _resolved("append", PrepareConfig, [*self.config.append, f"--append={self.config.data}", *arguments])

    def _of_run(self, name: str) -> list[str]:
        folder = self.config.published
        folder.mkdir(parents=True, exist_ok=True)
        return [f"--run_dir={self.config.run_dir}", f"--output={folder / name}.partial"]

    def _refuse_other_runs(self) -> None:
        train, metric = self.train, self.config.refresh.metric
        require(not train.overwrite, "train: overwrite", True, "false: a refresh resumes its run")
        require(train.resume != "never", "train: resume", train.resume, "auto: a refresh resumes its run")
        require(train.checkpoint.enabled, "train: checkpoint.enabled", False, "true: a refresh resumes its run")
        require(train.training.spans is None, "train: training.spans", train.training.spans, "none: all are trained")
        require(train.training.export != "none", "train: training.export", "none", "last or every")
        metrics = sorted(Metrics(train.eval.top).result().keys() - {"users"})
        require(metric in metrics, "refresh.metric", metric, f"one that train measures: {', '.join(metrics)}")


def _resolved(key: str, tree: type[Section], arguments: Sequence[str]) -> Section:
    try:
        return resolve(tree, arguments)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
