"""A log by days, its first preparation, and a refresh of it."""

from rich.console import Console

from dist_imsr.data.prepare import PrepareConfig, prepare
from dist_imsr.refresh.config import PublishConfig, QualityConfig, RefreshConfig
from tests.prepared import drawn_history

DAY = 86_400
START = 1_600_041_600  # a midnight in UTC
HISTORY = drawn_history(users=60, items=80, spans=5, longest=12)
TRAIN = [
    *("--model.dim=8", "--batch.size=16", "--batch.negatives=20", "--eval.top=[20]", "--catalogue.headroom=0"),
    *("--training.epochs=2", "--training.incremental_epochs=2", "--checkpoint.every_steps=3"),
]


def write_days(folder):
    """A CSV file of each span of the history; returns their paths."""
    paths = []
    for span in range(5):
        rows = [
            f"u{user},i{item},{START + DAY * span + place}"
            for user, spans in HISTORY.items()
            for place, item in enumerate(spans[span])
        ]
        paths.append(folder / f"day-{span}.csv")
        paths[-1].write_text("\n".join(["user,item,time", *rows]) + "\n")
    return paths


def prepare_days(days, output):
    """Prepares some days in one go."""
    prepare(
        PrepareConfig(
            source="csv",
            input=days,
            output=output,
            span_every="1d",
            pretrain_until=START + DAY,
            min_interactions=1,
            buckets=8,
            threads=1,
        ),
        Console(quiet=True),
    )
    return output


def config_in(folder, **changes):
    """A refresh of ``folder/data`` and ``folder/run`` that publishes both files."""
    publish = PublishConfig(recommend=["--top=5", "--exclude_seen=true"], export=["--index.kind=flat", "--top=5"])
    keys = {
        "data": folder / "data",
        "run_dir": folder / "run",
        "append": ["--threads=1"],
        "train": TRAIN,
        "ranks": 2,
        "publish": publish,
        "refresh": QualityConfig("hr@20", min_ratio=0.0),
    }
    return RefreshConfig(**keys | changes)


def published(folder):
    """The files of the current publication."""
    current = folder / "run" / "published" / "current"
    return {
        str(path.relative_to(current.resolve())): path.read_bytes()
        for path in sorted(current.resolve().rglob("*"))
        if path.is_file()
    }
