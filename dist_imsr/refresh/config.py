"""The keys of a refresh; configs/refresh.yaml is an example."""

from dataclasses import dataclass, field
from pathlib import Path

from dist_imsr.checks import require


@dataclass
class PublishConfig:
    """What is written for serving, and where.

    Each publication is a folder of its own in ``folder``, and the link ``folder/current`` names the newest: it changes
    at once, when all files of a publication are complete.

    Args:
        folder: of the publications; ``published`` in the run's folder by default.
        recommend: arguments of launch/recommend.py, as ``--key=value``, for ``recommendations.parquet``; none is
            written by default.
        export: arguments of launch/export.py, as ``--key=value``, for ``export/``; none is written by default.
        only_changed: write recommendations only of users whose interests or history changed after the publication
            before, for a reader that holds those of the others. publication.json names that publication's span, or
            none if all users are there.
        keep: number of publications that stay, the current one included, for readers that have older files open.
    """

    folder: Path | None = None
    recommend: list[str] | None = None
    export: list[str] | None = None
    only_changed: bool = False
    keep: int = 2

    def __post_init__(self) -> None:
        require(self.keep >= 1, "publish.keep", self.keep, "at least 1")


@dataclass
class QualityConfig:
    """When a new model is good enough to be published.

    Args:
        metric: of metrics.jsonl; the larger, the better.
        last_spans: the number of tested spans before the newest one whose mean is the yardstick.
        min_ratio: the least share of that mean that the newest tested span must have; 0 publishes every model.
    """

    metric: str = "hr@20"
    last_spans: int = 7
    min_ratio: float = 0.8

    def __post_init__(self) -> None:
        require(self.last_spans >= 1, "refresh.last_spans", self.last_spans, "at least 1")
        require(self.min_ratio >= 0, "refresh.min_ratio", self.min_ratio, "at least 0")


@dataclass
class RefreshConfig:
    """Appends new interactions to prepared data, tests and trains the run on them, and publishes its results.

    A step that is done is skipped: the same command continues a refresh that was stopped or killed.

    Args:
        data: the prepared data, a folder that launch/prepare.py wrote.
        run_dir: the run's folder.
        input: new raw files: one or several, folders, or patterns; those that were appended before are left out.
            Without any, what is in the data already is trained and published.
        from_: the first time that counts in the new files, as in launch/prepare.py. In YAML the key is ``from_``.
        until: the first time that no longer counts in the new files, as in launch/prepare.py.
        append: further arguments of launch/prepare.py for the new files, as ``--key=value``.
        train: arguments of launch/train.py, as ``--key=value``.
        ranks: processes for training and recommendations, each on a device of its own where there are any.
        keep_spans: the number of newest spans whose rows stay in the prepared data; those of older ones are retired
            after the training. All stay by default.
        publish: what is written for serving.
        refresh: when a new model is good enough.
    """

    data: Path
    run_dir: Path
    input: list[Path] | Path | None = None
    from_: str | int | None = None
    until: str | int | None = None
    append: list[str] = field(default_factory=list)
    train: list[str] = field(default_factory=list)
    ranks: int = 1
    keep_spans: int | None = None
    publish: PublishConfig = field(default_factory=PublishConfig)
    refresh: QualityConfig = field(default_factory=QualityConfig)

    @property
    def published(self) -> Path:
        """The folder of the publications."""
        return self.publish.folder or self.run_dir / "published"

    def __post_init__(self) -> None:
        require(self.ranks >= 1, "ranks", self.ranks, "at least 1")
        require(self.keep_spans is None or self.keep_spans >= 1, "keep_spans", self.keep_spans, "at least 1")
