import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_imsr.data.dataset import DataConfig
from dist_imsr.processes import free_port
from dist_imsr.training.config import TrainConfig, TrainingConfig
from dist_imsr.training.run import train
from tests.prepared import drawn_history, write_dataset
from tests.ranks import run_ranks
from tests.runs import run, timeless

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--model.dim", "8", "--batch.size", "16", "--batch.negatives", "20", "--eval.top", "[5]"),
    *("--training.epochs", "2", "--training.incremental_epochs", "2", "--catalogue.headroom", "0"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), drawn_history(users=60, items=80, spans=4))


_LAUNCHERS = {
    "deepspeed": ["deepspeed", "--num_accelerators", "2", "--master_port"],
    "torchrun": ["torchrun", "--nproc-per-node", "2", "--master-port"],
}


def _launch(*arguments, launcher=None):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    program = [*_LAUNCHERS[launcher], str(free_port())] if launcher else [sys.executable]
    return subprocess.Popen(
        [*program, str(ROOT / "launch" / "train.py"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
    )


def test_two_ranks_from_the_command_line(folder, tmp_path):
    run = tmp_path / "run"
    process = _launch("--data.path", folder, "--run_dir", run, *SMALL, launcher="deepspeed")
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["span"], line["test_span"]) for line in lines] == [(1, 2), (2, 3)], errors
    assert set(lines[0]) == {
        *("strategy", "base", "seed", "span", "test_span", "users", "train_seconds", "eval_seconds", "loss"),
        *("hr@5", "ndcg@5", "hr@5_any", "ndcg@5_any", "hr@5_new", "hr@5_existing", "recall@5", "mrr@5"),
        *("ndcg@5_new", "ndcg@5_existing"),
        *("hr@5_unseen", "ndcg@5_unseen", "repeat_weight", "repeat_decay"),
        *("interests_mean", "interests_p50", "interests_p95", "interests_max", "store_bytes"),
        *("interests_created", "interests_kept", "interests_trimmed", "interests_refused", "puzzled_users"),
        *("fit_mean", "fit_p10", "fit_p50", "fit_p90"),
        *("norm_kept", "norm_trimmed", "existing_cosine", "retention_loss", "validation"),
    }
    assert all(0 <= lines[0][name] <= 1 for name in ("hr@5", "ndcg@5", "hr@5_any", "ndcg@5_any"))
    assert any(path.name.startswith("events") for path in (run / "events").iterdir())
    assert "hr@5_any" in out  # the table of the spans
    assert "Baseline popular (the popular items" in out
    assert len((run / "baselines.jsonl").read_text().splitlines()) == 4
    (start,) = (line for line in errors.splitlines() if "rank(s)" in line)
    for fact in (
        "2 rank(s), 2 a machine, 1 thread(s) each, on cpu",
        "item rows of 12 in 2 shards",
        "8 buckets of users",
        "16 users a step",
        f"{folder}: 4 spans, 59 users",
        "imsr with comirec_dr, seed 0",
        "no checkpoint",
    ):
        assert fact in start
    logs = [(run / "logs" / f"rank=000{rank}.log").read_text() for rank in (0, 1)]
    assert re.search(r"rank 0 span - step - DEBUG .*buckets 0:4, item rows 0:", logs[0])
    assert re.search(r"rank 1 span - step - DEBUG .*buckets 4:8, item rows [1-9]", logs[1])
    for rank, log in enumerate(logs):  # where the last epoch of span 1 ended
        assert re.search(rf"rank {rank} span 1 step [1-9]\d* INFO .*: span 1, epoch 1: loss", log)
        for phase in ("training in span 1, epoch 1", "validation in span 1, epoch 1", "detector in span 1"):
            assert re.search(rf"DEBUG .*: {phase}: \d+ steps", log)
        assert re.search(r"DEBUG .*: trimmer: \d+\.\d+ s", log)
    other = _launch("--data.path", folder, "--run_dir", tmp_path / "other", *SMALL, launcher="torchrun")
    assert "2 rank(s), 2 a machine" in other.communicate(timeout=120)[1]
    assert other.returncode == 0
    again = [json.loads(line) for line in (tmp_path / "other" / "metrics.jsonl").read_text().splitlines()]
    assert timeless(again) == timeless(lines)
    again = _launch("--config", run / "config.yaml", "--print_config")
    assert f"path: {folder}" in again.communicate(timeout=60)[0]


def _fixed_order(topology, config):
    found = [torch.are_deterministic_algorithms_enabled()]
    for deterministic in (False, True):
        training = replace(config.training, deterministic=deterministic)
        run(topology, replace(config, run_dir=config.run_dir / str(deterministic), training=training))
        found.append(torch.are_deterministic_algorithms_enabled())
    return found


def test_the_order_of_sums_is_fixed_unless_the_key_says_otherwise(folder, tmp_path):
    config = TrainConfig(
        data=DataConfig(folder),
        run_dir=tmp_path,
        training=TrainingConfig(epochs=1, incremental_epochs=1, spans=0),
        baselines=False,
    )
    assert run_ranks(1, _fixed_order, config, fresh=True) == [[True, False, True]]


def test_interrupted(folder, tmp_path):
    run = tmp_path / "run"
    process = _launch(
        "--data.path", folder, "--run_dir", run, *SMALL, "--training.epochs", 100_000, "--training.patience", 0
    )
    deadline = time.monotonic() + 60
    while not (run / "events").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("train: stopped; the same command resumes from")
    assert "Traceback" not in errors


def test_an_earlier_run_is_refused_and_kept(folder, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "events").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("old\n")
    (run / "notes.txt").write_text("mine\n")
    assert train(TrainConfig(data=DataConfig(folder), run_dir=run)) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "holds an earlier run" in errors
    assert "--overwrite true" in errors
    assert (run / "metrics.jsonl").read_text() == "old\n"


@pytest.mark.parametrize(
    ("data", "run", "message"),
    [("nowhere", "run", "data.path"), ("data", "file", "is a file"), ("data", "file/run", "cannot be written")],
)
def test_wrong_paths_are_refused_in_one_line(folder, tmp_path, capsys, data, run, message):
    (tmp_path / "file").write_text("mine\n")
    (tmp_path / "data").symlink_to(folder)
    assert train(TrainConfig(data=DataConfig(tmp_path / data), run_dir=tmp_path / run)) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert message in errors
    assert (tmp_path / "file").read_text() == "mine\n"
    assert not (tmp_path / "run").exists()
