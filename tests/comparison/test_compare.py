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
from dist_imsr.comparison.config import Row, Source, TuningConfig
from dist_imsr.config import to_yaml
from dist_imsr.training.folder import lock_folder

ROOT = Path(__file__).parents[2]
ROWS = {
    "fine_tuning": Row(),
    "imsr": Row(set=["--strategy.imsr.rho=1"]),
    "diverging": Row("fine_tuning", set=["--catalogue.incremental_learning_rate=1e38"]),
    "own_history": Row(baseline="own_history"),
}
KEYS = {"fine_tuning": {"engine.incremental_learning_rate": [0.0001, 0.001]}}


def _records(output):
    return {path.parent.relative_to(output): json.loads(path.read_text()) for path in output.glob("**/cell.json")}


def _stamps(output):
    return {path: path.stat().st_mtime_ns for path in sorted(output.glob("**/metrics.jsonl"))}


def test_a_grid_from_nothing_to_its_tables_and_again(place, capfd, tmp_path):
    config = place.compare(
        strategies=ROWS, tests=["fine_tuning", "own_history"], seeds=[0, 1], tuning=TuningConfig(2, 1, keys=KEYS)
    )
    assert compare(config) == 1  # one row fails, the others do not
    printed = capfd.readouterr()
    assert (
        "not all cells have numbers: drawn/comirec_dr/diverging seed 0 failed: the loss of rank(s) [0]" in printed.err
    )
    assert "and 1 more" in printed.err

    cells = place.output / "cells" / "drawn" / "comirec_dr"
    for seed in (0, 1):
        assert {path.name for path in (cells / "imsr" / f"seed={seed}").iterdir()} == {
            *(
                ".lock",
                "cell.json",
                "config.yaml",
                "environment.jsonl",
                "events",
                "log.txt",
                "logs",
                "metrics.jsonl",
                "phases.jsonl",
                "users",
            )
        }
    record = _records(place.output)[Path("cells/drawn/comirec_dr/imsr/seed=1")]
    assert (record["status"], record["reason"]) == ("done", "")
    assert "--strategy.imsr.rho=1" in record["arguments"]

    results = pq.read_table(place.output / "results.parquet").to_pylist()
    assert len(results) == 2 * 2 * 2 + 2 + 2  # two spans a cell; those that diverge have none
    assert {(row["row"], row["status"]) for row in results} == {
        *(("fine_tuning", "done"), ("imsr", "done"), ("diverging", "failed"), ("own_history", "done"))
    }
    summary = {row["strategy"]: row for row in pq.read_table(place.output / "summary.parquet").to_pylist()}
    assert summary["imsr"]["hr"] == pytest.approx(25 * sum(row["hr@5"] for row in results if row["row"] == "imsr"))
    assert summary["imsr"]["n_seeds_vs_fine_tuning"] == 2
    assert summary["imsr"]["n_users_vs_fine_tuning"] > 30
    assert summary["diverging"]["hr"] is None
    assert (summary["imsr"]["n_seeds_vs_own_history"], summary["own_history"]["seeds"]) == (2, 1)
    assert summary["imsr"]["n_users_vs_own_history"] == summary["imsr"]["n_users_vs_fine_tuning"]
    counted = [row["hr@5"] for row in results if row["row"] == "own_history"]
    assert summary["own_history"]["hr"] == pytest.approx(50 * sum(counted))

    tables = (place.output / "tables.md").read_text()
    assert (
        "| comirec_dr | diverging | - | - | - | - | - | - | - | - | - | - | seed 0 failed: the loss of rank(s)"
        in tables
    )
    for title in ("Tuning", "drawn: strategies (Table III)", "drawn: training time (Table V)"):
        assert f"## {title}\n" in tables
    assert "nan" not in tables
    assert "HR@5" in printed.out
    trials = pq.read_table(place.output / "trials.parquet").to_pylist()
    assert [trial["values"] for trial in trials] == ["as configured", "engine.incremental_learning_rate=0.0001"]
    assert sum(trial["chosen"] for trial in trials) == 1

    stamps = _stamps(place.output)
    shutil.rmtree(cells / "fine_tuning" / "seed=1" / "users")  # a cell that lost numbers is no finished one
    rows = {name: row for name, row in ROWS.items() if name != "diverging"}
    unread = Row(set=["--strategy.imsr.rho=7"])
    changed = replace(config, strategies={**rows, "imsr": Row(set=["--strategy.imsr.rho=0"]), "fine_tuning": unread})
    assert compare(changed) == 0
    again = {path.parent for path, stamp in _stamps(place.output).items() if stamps.get(path) != stamp}
    assert again == {cells / "imsr" / "seed=0", cells / "imsr" / "seed=1", cells / "fine_tuning" / "seed=1"}
    assert "its configuration or its files changed, so it is run again" in capfd.readouterr().err

    stamps, tables = _stamps(place.output), (place.output / "tables.md").read_text()
    document = tmp_path / "results.md"
    document.write_text(f"# Before\n<!-- {place.output.name} -->\nold\n<!-- end of {place.output.name} -->\nafter\n")
    for table_only in (False, True):
        assert compare(replace(changed, table_only=table_only, document=document if table_only else None)) == 0
        assert _stamps(place.output) == stamps
        assert (place.output / "tables.md").read_text() == tables
    head, _, rest = document.read_text().partition(f"<!-- {place.output.name} -->\n")
    assert (head, rest) == ("# Before\n", f"\n{tables}\n<!-- end of {place.output.name} -->\nafter\n")


def test_a_folder_that_another_comparison_writes_to_is_refused(place, capfd):
    lock = lock_folder(place.output, "output")
    assert compare(place.compare(strategies={"fine_tuning": Row()})) == 2
    os.close(lock)
    message = capfd.readouterr().err
    assert message.startswith("compare: output: another process is writing to")
    assert message.count("\n") == 1
    assert [path.name for path in place.output.iterdir()] == [".lock"]


def _found(root, pattern, seconds=60):
    """Waits for a file."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if paths := sorted(root.glob(pattern)):
            return paths[0]
        time.sleep(0.02)
    raise AssertionError(f"no {pattern} within {seconds} s")


def _free(folder, seconds=60):
    """Waits until no process writes to a folder."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.close(lock_folder(folder, "run_dir"))
            return
        except ValueError:
            time.sleep(0.02)
    raise AssertionError(f"{folder} is locked after {seconds} s")


def _stop_once_resumed(log):
    while "resuming from" not in log.read_text():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_killed_comparison_stops_its_runs_in_order_and_resumes(place, capfd):
    source = Source(place.settings, place.data, ["--training.epochs=40", "--training.patience=0"])
    config = place.compare(strategies={"fine_tuning": Row()}, seeds=[0], ranks=2, data={"drawn": source})
    file = place.output.with_name("compare.yaml")
    file.write_text(to_yaml(config))
    command = [sys.executable, "launch/compare.py", f"--config={file}"]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    folder = _found(place.output, "pretraining/drawn/comirec_dr/seed=0-*/checkpoints/span=*").parents[1]
    process.kill()
    process.communicate()
    _free(folder)  # its ranks notice, and stop in order
    assert "train: stopped; the same command resumes from" in (folder / "log.txt").read_text()

    stopping = threading.Thread(target=_stop_once_resumed, args=(folder / "log.txt",))
    stopping.start()
    assert compare(config) == 75
    stopping.join()
    assert "compare: stopped; 0 of 1 rows are finished, and the same command continues" in capfd.readouterr().err
    assert json.loads((folder / "cell.json").read_text())["status"] == "started"
    assert compare(config) == 0
    assert (folder / "log.txt").read_text().count("resuming from") == 2
    assert {record["status"] for record in _records(place.output).values()} == {"done"}
    (record,) = pq.read_table(place.output / "summary.parquet").to_pylist()
    assert record["hr"] is not None
    assert record["hr_std"] is None
