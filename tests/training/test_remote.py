"""Runs on prepared data in an S3 server are those on the disk, bit for bit, whatever the cache and the server do."""

import functools
import json
import time
from dataclasses import replace

import pytest

from dist_imsr import evaluate, prepare, recommend, train
from dist_imsr.api import EvaluateConfig, PrepareConfig, RecommendConfig
from dist_imsr.data import remote
from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.drift import DriftConfig
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.launcher import rank_info
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.report.sources import Run
from dist_imsr.strategies import StrategyConfig
from dist_imsr.training.config import TrainConfig, TrainingConfig
from launch.baselines import main as baselines
from launch.export import main as export
from tests.commands import start_ranks
from tests.object_store import ObjectStore
from tests.prepared import drawn_history, write_dataset
from tests.ranks import ranks_on
from tests.runs import run, timeless

HISTORY = drawn_history(users=60, items=80, spans=4, longest=12)


@pytest.fixture(scope="module")
def store():
    store = ObjectStore()
    yield store
    store.stop()


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory):
    folder = write_dataset(tmp_path_factory.mktemp("data"), HISTORY)
    store.put_folder(folder, "data")
    return folder


def _config(data, run_dir, strategy):
    return TrainConfig(
        data=data,
        run_dir=run_dir,
        model=ModelConfig(dim=8, interests=3),
        strategy=StrategyConfig(strategy),
        batch=BatchConfig(size=16, max_history=10, max_targets=3, negatives=20, eval_size=16),
        catalogue=CatalogueConfig(headroom=0.0),
        training=TrainingConfig(epochs=3, incremental_epochs=2, patience=2),
        eval=EvalConfig([5]),
    )


@pytest.mark.parametrize(("world_size", "strategy"), [(1, "imsr"), (2, "imsr"), (2, "full_retraining")])
def test_a_run_on_remote_data_is_one_on_the_disk(store, folder, tmp_path, world_size, strategy):
    there = DataConfig(store.readable("data"), cache=tmp_path / "cache")
    tiny = replace(there, cache=tmp_path / "tiny", cache_limit="3KB")
    assert sum(path.stat().st_size for path in folder.rglob("bucket=*")) > 30_000
    with ranks_on(world_size) as ranks:
        here, *others = (
            ranks.call(run, _config(data, tmp_path / name, strategy))
            for name, data in (("here", DataConfig(folder)), ("there", there), ("tiny", tiny))
        )
    assert here[0][0]
    assert others == [here, here]
    kept = [path.stat().st_size for path in (tmp_path / "cache").glob("files/*/*")]
    assert len(kept) > 4 * 8
    assert sum(path.stat().st_size for path in (tmp_path / "tiny").glob("files/*/*")) < sum(kept)


def _pause_before_span_2(place, waits):
    """Lets this rank wait, before it first opens a bucket of span 2, until a file ``go`` is in the folder."""
    remote.WAITS = waits
    sequences = Dataset.sequences

    def opened(self, span, bucket):
        if span == 2 and not (place / "go").exists():
            (place / f"paused-{rank_info().rank}").touch()
            _wait_for(place / "go")
        return sequences(self, span, bucket)

    Dataset.sequences = opened


def _wait_for(*paths):
    deadline = time.monotonic() + 120
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, paths
        time.sleep(0.05)


def _arguments(store, tmp_path):
    sizes = ["--batch.size=16", "--batch.negatives=20", "--model.dim=8", "--training.epochs=2", "--eval.top=[5]"]
    places = [f"--data.path={store.readable('data')}", f"--data.cache={tmp_path / 'cache'}"]
    return [*places, f"--run_dir={tmp_path / 'run'}", *sizes, "--baselines=false"]


def test_a_server_that_comes_back_is_waited_for(store, folder, tmp_path):
    before = functools.partial(_pause_before_span_2, tmp_path, (3.0,))
    ranks = start_ranks(tmp_path, *_arguments(store, tmp_path), before=before)
    _wait_for(tmp_path / "paused-0", tmp_path / "paused-1")
    store.stop()
    try:
        (tmp_path / "go").touch()
        logs = [tmp_path / "run" / "logs" / f"rank={rank:04d}.log" for rank in range(2)]
        deadline = time.monotonic() + 60
        while not all("next attempt in 3 s" in log.read_text() for log in logs):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        store.start()
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    found = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = [*_arguments(store, tmp_path), f"--run_dir={tmp_path / 'undisturbed'}", f"--data.path={folder}"]
    assert [rank.wait(120) for rank in start_ranks(tmp_path, *again)] == [0, 0]
    expected = (tmp_path / "undisturbed" / "metrics.jsonl").read_text()
    first, second = (timeless(map(json.loads, text.splitlines())) for text in (found, expected))
    assert first == second
    assert len(first) == 2


def test_a_server_that_is_gone_is_named(store, folder, tmp_path):
    before = functools.partial(_pause_before_span_2, tmp_path, (0.01,))
    ranks = start_ranks(tmp_path, *_arguments(store, tmp_path), before=before)
    _wait_for(tmp_path / "paused-0", tmp_path / "paused-1")
    store.stop()
    try:
        (tmp_path / "go").touch()
        assert [rank.wait(120) for rank in ranks] == [1, 1]
    finally:
        store.start()
    errors = [line for rank in ranks for line in rank.communicate()[1].splitlines() if line.startswith("train: ")]
    assert len(errors) == 2
    address = store.readable("data").place
    assert any(f"{address}/span=2/bucket=0" in line and "after 2 attempts" in line for line in errors), errors
    ranks = start_ranks(tmp_path, *_arguments(store, tmp_path))  # the same command resumes
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_what_reads_a_finished_run_reads_remote_data(store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    address, folder = store.address("drift"), tmp_path / "data"
    drift = DriftConfig(users=60, items=80, clusters=8, interactions=[1500, 800])
    for output in (address, folder):
        prepare(PrepareConfig(source="drift", output=output, drift=drift, spans=3, min_interactions=1))
    config, run_dir = _config(DataConfig(address, cache=tmp_path / "cache"), tmp_path / "run", "imsr"), tmp_path / "run"
    train(replace(config, training=replace(config.training, export="every")))
    found = []
    for data in (None, folder):
        shared = {"run_dir": run_dir, "data": data}
        rows = recommend(RecommendConfig(output=tmp_path / f"{len(found)}.parquet", exclude_seen=True, **shared))
        tests = evaluate(EvaluateConfig(**shared)), evaluate(EvaluateConfig(drift_truth=True, **shared))
        found.append((rows.to_pylist(), *(timeless(table.to_pylist()) for table in tests)))
    assert found[0] == found[1]
    read = Run(run_dir)
    assert read.group.data == "drift"
    assert read.dataset.digests == Dataset(DataConfig(folder)).digests
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]  # the run's own cache is used
    lines = []
    for data in (address, folder):
        output = tmp_path / f"{len(lines)}.jsonl"
        assert baselines([f"--data.path={data}", "--baselines", "popular", "item_knn", f"--output={output}"]) == 0
        lines.append(timeless(map(json.loads, output.read_text().splitlines())))
    assert lines[0] == lines[1]
    assert export([f"--run_dir={run_dir}", f"--output={tmp_path / 'export'}"]) == 0
