"""Daily refreshes of generated drift, one after the other, against a run that has all days from the beginning."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from dist_imsr.benchmarks.options import MAY_BE_ZERO, FolderOptions
from dist_imsr.benchmarks.report import Figure
from dist_imsr.checks import require
from dist_imsr.data.drift import DriftConfig
from dist_imsr.data.generate import GenerateConfig, generate
from dist_imsr.data.sql import quoted_path

_LAUNCH = Path(__file__).parents[2] / "launch"
_ROWS_OF_A_USER, _ROWS_OF_AN_ITEM, _CLUSTERS = 175, 100, 1000  # as in the paper's Taobao
_FIRST = 1_511_884_800  # 2017-11-29 in Shanghai; the public log has four days before it, and five after it
_HALF_DAY = 43_200
_CUT = ("--span_every=12h", f"--pretrain_until={_FIRST}", "--time_zone=Asia/Shanghai", "--min_interactions=1")
_TRAIN = (
    *("--strategy.name=imsr", "--training.epochs=1", "--training.incremental_epochs=1", "--training.patience=0"),
    *("--batch.size=1024", "--batch.max_history=50", "--batch.max_targets=20", "--batch.negatives=500"),
    *("--eval.max_users=5000", "--catalogue.learning_rate=0.3", "--catalogue.incremental_learning_rate=0.1"),
)


@dataclass(frozen=True, kw_only=True)
class RefreshBench(FolderOptions):
    """Runs launch/refresh.py for each half day of a synthetic log in UserBehavior's format.

    Args:
        rows: approximate size of the log; the first four of its nine days are prepared and trained first.
        days: number of refreshes, of half a day each; at most 10.
        ranks: processes of each training.
        users: of whom recommendations are written.
        memory_limit: prepare.py's.
        folder: parent of a scratch folder, about 200 bytes a row, which is removed at the end; the current directory by
            default.
        seed: of the log.
    """

    rows: int = 17_000_000
    days: int = 10
    ranks: int = 2
    users: int = 5000
    memory_limit: str = "4GiB"
    seed: int = field(default=0, metadata=MAY_BE_ZERO)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.days <= 10, "days", self.days, "1 to 10")


def bench_refresh(options: RefreshBench) -> list[Figure]:
    """Measures each refresh, and compares the last one's recommendations with those of an undisturbed run.

    Returns:
        Rows, seconds of each step and the peak of the ranks' memory, a run for each refresh; and whether the
        recommendations are the same.

    Raises:
        RuntimeError: if a command failed.
    """
    with options.scratch() as scratch:
        logs = _write_logs(options, scratch)
        users = scratch / "users.txt"
        shared = [f"--memory_limit={options.memory_limit}"]
        _launch("prepare.py", "--source=taobao", f"--input={logs[0]}", f"--output={scratch}/data", *_CUT, *shared)
        _write_users(options, scratch / "data", users)
        lines = []
        for log in logs:  # the first one is there already: this trains and publishes
            lines.append(_refresh(options, scratch, "data", "run", [] if log == logs[0] else [f"--input={log}"]))
        every = ", ".join(f'"{log}"' for log in logs)
        _launch("prepare.py", "--source=taobao", f"--input=[{every}]", f"--output={scratch}/whole", *_CUT, *shared)
        _refresh(options, scratch, "whole", "whole-run", [])
        same = _recommendations(scratch / "run").equals(_recommendations(scratch / "whole-run"))
        memory = [json.loads(line) for line in (scratch / "run" / "phases.jsonl").read_text().splitlines()]
    settings = options.settings
    refreshes = lines[1:]
    figures = [Figure("refresh_rows", "rows", [line["append"]["rows_read"] for line in refreshes], settings)]
    for step in ("append", "train", "recommend"):
        figures.append(Figure(f"refresh_{step}_seconds", "s", [line["seconds"][step] for line in refreshes], settings))
    peaks = [line["peak_bytes"] for line in memory if line["span"]]
    figures.append(Figure("refresh_training_peak_bytes", "bytes", peaks, settings))
    figures.append(Figure("refreshed_equals_undisturbed", "1 if so", [float(same)], settings))
    return [_with_runs(figure) for figure in figures]


def _with_runs(figure: Figure) -> Figure:
    """The same figure, which is written with the value of each refresh."""
    return Figure(figure.name, figure.unit, figure.runs, figure.settings, details={"by_refresh": [*figure.runs]})


def _write_logs(options: RefreshBench, scratch: Path) -> list[Path]:
    """One file for the first four days, and one for each half day."""
    log = scratch / "log.csv"
    drift = DriftConfig(
        users=options.rows // _ROWS_OF_A_USER,
        items=options.rows // _ROWS_OF_AN_ITEM,
        clusters=min(_CLUSTERS, options.rows // _ROWS_OF_AN_ITEM),
        interactions=[options.rows * 4 // 9, options.rows // 18],
        activity=0.8,
        seed=options.seed,
    )
    config = GenerateConfig(source="drift", drift=drift, alpha=0.44, spans=10, output=log, min_interactions=1)
    generate(config, Console(quiet=True))
    edges = [0, *(_FIRST + _HALF_DAY * day for day in range(options.days + 1))]
    files = [scratch / f"day-{day}.csv" for day in range(options.days + 1)]
    with duckdb.connect() as database:
        for path, begin, end in zip(files, edges, edges[1:], strict=False):
            rows = f"SELECT * FROM read_csv({quoted_path(log)}, header = false) WHERE column4 >= {begin} "
            database.execute(f"COPY ({rows} AND column4 < {end}) TO {quoted_path(path)} (HEADER false)")
    log.unlink()
    return files


def _write_users(options: RefreshBench, data: Path, path: Path) -> None:
    raw = pq.read_table(data / "users" / "span=0.parquet")["raw"].to_numpy()
    drawn = np.random.default_rng(options.seed).choice(raw, min(options.users, len(raw)), replace=False)
    path.write_text("".join(f"{user}\n" for user in drawn))


def _refresh(options: RefreshBench, scratch: Path, data: str, run: str, arguments: list[str]) -> dict[str, Any]:
    """Runs one refresh; returns its line of JSON."""
    recommend = json.dumps([f"--users={scratch}/users.txt"])
    output = _launch(
        "refresh.py",
        f"--data={scratch / data}",
        f"--run_dir={scratch / run}",
        f"--ranks={options.ranks}",
        f"--train={json.dumps([*_TRAIN])}",
        f"--append=[--memory_limit={options.memory_limit}]",
        f"--publish.recommend={recommend}",
        "--refresh.min_ratio=0",
        *arguments,
    )
    line: dict[str, Any] = json.loads(output.splitlines()[-1])
    return line


def _recommendations(run: Path) -> Any:
    return pq.read_table(run / "published" / "current" / "recommendations.parquet")


def _launch(script: str, *arguments: str) -> str:
    """Runs a command to its end; returns what it printed on standard output."""
    command = [sys.executable, str(_LAUNCH / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout
