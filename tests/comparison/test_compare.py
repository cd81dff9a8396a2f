"""Whole comparisons of small data: what they leave, what a second start does, and what survives kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dist_imsr.comparison.compare import compare
from dist_imsr.comparison.config import Row, TuningConfig
from dist_imsr.config import to_yaml
from dist_imsr.training.folder import hold

ROOT = Path(__file__).parents[2]
ROWS = {
    "frozen": Row(),
    "fine_tuning": Row(),
    "imsr": Row(set=["--strategy.imsr.rho=1"]),
    "diverging": Row("fine_tuning", set=["--catalogue.incremental_learning_rate=1e38"]),
    "apart": Row("life_long", ["comirec_sa"]),
}
KEYS = {"fine_tuning": {"engine.incremental_learning_rate": [0.0001, 0.001]}}


def _records(output):
    return {path.parent.relative_to(output): json.loads(path.read_text()) for path in output.glob("**/cell.json")}


def _stamps(output):
    return {path: path.stat().st_mtime_ns for path in sorted(output.glob("**/metrics.jsonl"))}


def test_a_grid_from_nothing_to_its_tables_and_again(place, capfd):
    config = place.compare(
        strategies=ROWS, tests=["fine_tuning", "imsr"], seeds=[0, 1], tuning=TuningConfig(2, 1, keys=KEYS)
    )
    assert compare(config) == 1  # one row fails, the others do not
    said = capfd.readouterr()
    assert "not all cells have numbers: drawn/comirec_dr/diverging seed 0 failed: the loss of rank(s) [0]" in said.err
    assert "and 1 more" in said.err

    cells = place.output / "cells" / "drawn" / "comirec_dr"
    for seed in (0, 1):
        assert {path.name for path in (cells / "imsr" / f"seed={seed}").iterdir()} == {
            *(".lock", "cell.json", "config.yaml", "events", "log.txt", "metrics.jsonl", "users")
        }
    record = _records(place.output)[Path("cells/drawn/comirec_dr/imsr/seed=1")]
    assert (record["status"], record["reason"]) == ("done", "")
    assert "--strategy.imsr.rho=1" in record["arguments"]

    results = pq.read_table(place.output / "results.parquet").to_pylist()
    assert len(results) == 3 * 2 * 2 + 2 * 2 + 2  # two spans a cell; those that diverge have none
    assert {(row["row"], row["status"]) for row in results} == {
        *((name, "failed" if name == "diverging" else "done") for name in ROWS)
    }
    summary = {row["strategy"]: row for row in pq.read_table(place.output / "summary.parquet").to_pylist()}
    own, other = (
        [row["hr@5"] for row in results if row["row"] == name and row["seed"] == 0] for name in ("imsr", "fine_tuning")
    )
    assert len(own) == len(other) == 2
    assert summary["imsr"]["hr"] == pytest.approx(25 * sum(row["hr@5"] for row in results if row["row"] == "imsr"))
    sums = {name: summary[name]["hr"] + summary[name]["ndcg"] for name in ("imsr", "fine_tuning")}
    assert summary["imsr"]["ri"] == pytest.approx(100 * (sums["imsr"] / sums["fine_tuning"] - 1))
    assert summary["imsr"]["n_seeds_vs_fine_tuning"] == 2
    assert summary["imsr"]["n_users_vs_fine_tuning"] > 30
    assert summary["apart"]["n_users_vs_imsr"] == summary["frozen"]["n_users_vs_imsr"]
    assert summary["diverging"]["hr"] is None

    tables = (place.output / "tables.md").read_text()
    assert "| comirec_dr | diverging | - | - | - | - | - | - | - | seed 0 failed: the loss of rank(s)" in tables
    for title in (
        "## Tuning",
        "## drawn: strategies (Table III)",
        "life-long models (Table IV)",
        "training time (Table V)",
    ):
        assert title in tables
    assert "nan" not in tables
    assert "HR@5" in said.out
    trials = pq.read_table(place.output / "trials.parquet").to_pylist()
    assert [trial["values"] for trial in trials] == ["as configured", "engine.incremental_learning_rate=0.0001"]
    assert sum(trial["chosen"] for trial in trials) == 1

    stamps = _stamps(place.output)
    shutil.rmtree(cells / "imsr" / "seed=1" / "users")  # a cell that lost numbers is no finished one
    changed = replace(config, strategies={**ROWS, "frozen": Row(set=["--model.iterations=2"])})
    del changed.strategies["diverging"]
    assert compare(changed) == 0
    again = {
        path.relative_to(place.output).parent
        for path, stamp in _stamps(place.output).items()
        if stamps.get(path) != stamp
    }
    frozen = {Path(f"cells/drawn/comirec_dr/frozen/seed={seed}") for seed in (0, 1)}
    apart = {path for path in again if path.parts[0] == "pretraining"}
    assert again - apart == {Path("cells/drawn/comirec_dr/imsr/seed=1"), *frozen}
    assert len(apart) == 2
    assert "its configuration or its files changed, so it is run again" in capfd.readouterr().err
    assert "own pre-training" in (place.output / "tables.md").read_text()

    stamps, tables = _stamps(place.output), (place.output / "tables.md").read_text()
    for table_only in (False, True):
        assert compare(replace(changed, table_only=table_only)) == 0
        assert _stamps(place.output) == stamps
        assert (place.output / "tables.md").read_text() == tables


def test_two_ranks_give_the_numbers_of_one(place):
    rows = {"fine_tuning": Row()}
    alone = place.compare(strategies=rows, seeds=[0], output=place.output / "1")
    both = place.compare(strategies=rows, seeds=[0], output=place.output / "2", ranks=2)
    assert compare(alone) == compare(both) == 0
    found = [pq.read_table(config.output / "summary.parquet").to_pylist()[0] for config in (alone, both)]
    assert found[0]["hr"] == pytest.approx(found[1]["hr"])
    assert found[0]["hr_std"] is None
    assert "±" not in (alone.output / "tables.md").read_text()


def _when(path, act):
    """Acts once there is something like the path."""

    def work():
        deadline = time.monotonic() + 60
        while not list(path.parent.glob(path.name)) and time.monotonic() < deadline:
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def _long(place):
    settings = ["--training.epochs=100000", "--training.patience=0", "--batch.size=4"]
    return place.compare(strategies={"fine_tuning": Row()}, seeds=[0]), settings


def test_a_killed_comparison_leaves_its_runs_in_order_and_goes_on(place, capfd):
    config = place.compare(strategies={"fine_tuning": Row(), "imsr": Row()}, seeds=[0])
    source = config.data["drawn"]
    slow = replace(config, data={"drawn": replace(source, set=["--training.epochs=400", "--training.patience=0"])})
    (place.output.parent / "compare.yaml").write_text(to_yaml(slow))
    begun = place.output / "pretraining" / "drawn" / "comirec_dr"
    command = [sys.executable, "launch/compare.py", "--config", str(place.output.parent / "compare.yaml")]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    _when(begun / "seed=0-*" / "checkpoints", lambda: None).join()
    while not (checkpoints := list(begun.glob("seed=0-*/checkpoints/span=*"))):
        time.sleep(0.05)
    assert compare(slow) == 2
    assert "another process is writing to" in capfd.readouterr().err
    process.kill()
    process.communicate()
    folder = checkpoints[0].parents[1]
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:  # the rank notices, and stops in order
        try:
            os.close(hold(folder, "run_dir"))
            break
        except ValueError:
            time.sleep(0.05)
    said = (folder / "log.txt").read_text()
    assert "train: stopped; the same command goes on from" in said

    _when(folder / "log.txt", lambda: None).join()
    stop = _when(place.output / ".lock", lambda: (time.sleep(1.5), os.kill(os.getpid(), signal.SIGTERM)))
    assert compare(slow) == 75
    stop.join()
    assert "stopped; 0 of 2 rows are finished, and the same command goes on" in capfd.readouterr().err
    assert json.loads((folder / "cell.json").read_text())["status"] == "started"
    assert "going on from" in (folder / "log.txt").read_text()
    assert compare(slow) == 0
    assert all(record["status"] == "done" for record in _records(place.output).values())
