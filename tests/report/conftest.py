"""Two small runs with all that a report can show, and a comparison."""

from pathlib import Path

import pytest

import dist_imsr
from dist_imsr.comparison.compare import compare
from dist_imsr.comparison.config import CompareConfig, Row, Source
from dist_imsr.config import resolve
from dist_imsr.report.config import ReportConfig
from dist_imsr.report.sources import Sources
from dist_imsr.training.config import TrainConfig
from tests.prepared import drawn_history, write_dataset

SETTINGS = """
model: {dim: 8, interests: 3}
batch: {size: 16, max_targets: 3, negatives: 20, eval_size: 64}
training: {epochs: 3, incremental_epochs: 2, export: every}
catalogue: {headroom: 0}
eval: {top: [5], per_user: true}
strategy: {imsr: {detector: {c1: 0.98}, trimmer: {c2: 0.05}}}
"""


@pytest.fixture(scope="session")
def history():
    return drawn_history(users=60, items=80, spans=4)


@pytest.fixture(scope="session")
def data(history, tmp_path_factory):
    # A run is labelled by its whole path where another source has its strategy: wider than a phone.
    folder = tmp_path_factory.mktemp("report_of_runs_with_a_path_that_is_wider_than_a_phone")
    (folder / "train.yaml").write_text(SETTINGS)
    return write_dataset(folder / "drawn", history)


def train(data: Path, run_dir: Path, *arguments: str) -> Path:
    common = [f"--config={data.parent / 'train.yaml'}", f"--data.path={data}", f"--run_dir={run_dir}"]
    dist_imsr.train(resolve(TrainConfig, [*common, *arguments]))
    return run_dir


@pytest.fixture(scope="session")
def runs(data):
    """Runs of imsr with two seeds, and one of fine_tuning."""
    return [
        train(data, data.parent / "imsr"),
        train(data, data.parent / "imsr_1", "--seed=1", "--training.export=none"),
        train(data, data.parent / "ft", "--strategy.name=fine_tuning"),
    ]


@pytest.fixture(scope="session")
def sources(runs):
    return Sources(ReportConfig(output=Path("report.html"), runs=runs))


@pytest.fixture(scope="session")
def comparison(data):
    """The folder of a comparison with rows of all kinds."""
    rows = {
        "popular": Row(baseline="popular"),
        "fine_tuning": Row(),
        "imsr": Row(),
        "no_detector": Row(strategy="imsr", set=["--strategy.imsr.detector.enabled=false"]),
        "c1_low": Row(strategy="imsr", set=["--strategy.imsr.detector.c1=0.5"]),
        "at_once": Row(strategy="imsr", set=["--model.interests=5", "--strategy.imsr.detector.enabled=false"]),
        "more": Row(strategy="imsr", set=["--strategy.imsr.detector.delta_k=2", "--model.interests=2"]),
    }
    config = CompareConfig(
        output=data.parent / "compare",
        data={"drawn": Source(data.parent / "train.yaml", data)},
        strategies=rows,
        seeds=[0, 1],
        top=5,
        cores=2,
    )
    assert compare(config) == 0
    return config.output
