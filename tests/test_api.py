import json
import logging
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import torch.distributed as dist

from dist_imsr import evaluate, prepare, recommend, train
from dist_imsr.api import EvaluateConfig, PrepareConfig, RecommendConfig, TrainConfig
from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig
from dist_imsr.data.drift import DriftConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.strategies import StrategyConfig, TrainingConfig
from tests.commands import ROOT
from tests.runs import timeless


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    drift = DriftConfig(users=60, items=80, clusters=8, interactions=[1500, 800])
    output = tmp_path_factory.mktemp("data") / "drift"
    return prepare(PrepareConfig(source="drift", output=output, drift=drift, spans=3, min_interactions=1))


def _config(data, run_dir, strategy="fine_tuning"):
    return TrainConfig(
        data=DataConfig(data),
        run_dir=run_dir,
        model=ModelConfig(dim=8, interests=2),
        strategy=StrategyConfig(strategy),
        batch=BatchConfig(size=32, max_history=8, max_targets=3, negatives=20, eval_size=32),
        training=TrainingConfig(epochs=2, incremental_epochs=1, export="every"),
    )


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    return train(_config(data, run_dir)), run_dir


def test_prepare_returns_the_folder(data):
    assert (data / "dataset.json").is_file()


def test_train_returns_what_it_wrote(run):
    table, run_dir = run
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert table.to_pylist() == lines
    assert len(lines) == 2


def test_the_command_gives_the_same_numbers(run, data, tmp_path):
    table, _ = run
    arguments = [
        *("--data.path", data, "--run_dir", tmp_path / "run", "--model.dim", 8, "--model.interests", 2),
        *("--strategy.name", "fine_tuning", "--batch.size", 32, "--batch.max_history", 8, "--batch.max_targets", 3),
        *("--batch.negatives", 20, "--batch.eval_size", 32),
        *("--training.epochs", 2, "--training.incremental_epochs", 1),
    ]
    subprocess.run(
        [sys.executable, ROOT / "launch" / "train.py", *map(str, arguments)], check=True, capture_output=True
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert timeless(lines) == timeless(table.to_pylist())


def test_a_finished_run_returns_its_lines_again(run, data):
    table, run_dir = run
    assert train(_config(data, run_dir)).to_pylist() == table.to_pylist()


def test_evaluate_repeats_the_tests(run):
    table, run_dir = run
    again = evaluate(EvaluateConfig(run_dir))
    assert again["test_span"].to_pylist() == [2, 3]
    for name in ("users", "hr@20", "ndcg@20_any"):
        assert again[name].to_pylist() == table[name].to_pylist()


def test_recommend_returns_the_file(run, tmp_path):
    _, run_dir = run
    table = recommend(RecommendConfig(run_dir, tmp_path / "lists.parquet", top=5))
    assert table.column_names == ["user", "item", "score", "rank", "interest"]
    assert table.equals(pq.read_table(tmp_path / "lists.parquet"))
    assert set(table["rank"].to_pylist()) == {1, 2, 3, 4, 5}


def test_nothing_is_left_behind(run, tmp_path):
    _, run_dir = run
    variables, handlers = dict(os.environ), list(logging.getLogger().handlers)
    evaluate(EvaluateConfig(run_dir))
    with pytest.raises(ValueError, match=r"config\.yaml"):
        evaluate(EvaluateConfig(tmp_path))
    assert dict(os.environ) == variables
    assert logging.getLogger().handlers == handlers
    assert not dist.is_initialized()


def test_a_wrong_key_is_named(data, tmp_path):
    config = _config(data, tmp_path / "run")
    config.training.spans = 9
    with pytest.raises(ValueError, match=r"training\.spans"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_ranks_of_a_launcher_are_refused(run, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match="use the scripts"):
        evaluate(EvaluateConfig(run[1]))


def test_the_package_itself_imports_nothing_heavy():
    code = "import dist_imsr, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
