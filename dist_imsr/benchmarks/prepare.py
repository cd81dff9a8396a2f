"""Preparing raw logs of several sizes with launch/prepare.py, and with the same steps in Polars."""

import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from dist_imsr.benchmarks.options import MAY_BE_ZERO, FolderOptions
from dist_imsr.benchmarks.report import Figure, ratios
from dist_imsr.benchmarks.world import take_turns
from dist_imsr.checks import require
from dist_imsr.data.drift import DriftConfig
from dist_imsr.data.generate import GenerateConfig, generate
from dist_imsr.data.prepare import PrepareConfig
from dist_imsr.phases import process_memory

PREPARE = Path(__file__).parents[2] / "launch" / "prepare.py"
_POLARS = Path(__file__).with_name("polars_prepare.py")
_ROWS_OF_A_USER, _ROWS_OF_AN_ITEM, _SPANS = 175, 100, 6  # as in the paper's Taobao
_CLUSTERS = 1000
_SHARED = ("buckets", "memory_limit", "threads")  # with prepare.py
_POLL_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class PrepareBench(FolderOptions):
    """Times launch/prepare.py on synthetic logs in UserBehavior's format, users and items in proportion to rows.

    Args:
        rows: approximate sizes of the logs, in rising order.
        polars_rows: the size that is also prepared with Polars.
        memory_limit: prepare.py's.
        buckets: of users.
        threads: of DuckDB and of Polars; all that this process may use by default.
        repeats: runs of each side and size.
        folder: parent of a scratch folder for logs and prepared data, about 90 bytes a row, which is removed at the
            end; the current directory by default.
        seed: of the logs.
    """

    rows: list[int] = field(default_factory=lambda: [1_700_000, 17_000_000, 170_000_000])
    polars_rows: int = 17_000_000
    memory_limit: str = "4GiB"
    buckets: int = 64
    threads: int | None = None
    repeats: int = 3
    seed: int = field(default=0, metadata=MAY_BE_ZERO)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.rows) and min(self.rows) >= 10_000, "rows", self.rows, "numbers of at least 10000")
        require(self.rows == sorted(set(self.rows)), "rows", self.rows, "rising numbers")
        require(self.polars_rows in self.rows, "polars_rows", self.polars_rows, f"one of rows, {self.rows}")
        # These keys are checked by prepare.py's own section.
        PrepareConfig(source="taobao", output=Path(), **{key: getattr(self, key) for key in _SHARED})


def bench_prepare(options: PrepareBench) -> list[Figure]:
    """Measures rows/s and the peak of resident memory at each size, how they grow, and both over Polars'.

    Returns:
        The figures; sizes in their names are those of the options, and ``rows_read`` of their settings is the log's.

    Raises:
        RuntimeError: if a side failed, such as for lack of memory.
    """
    figures = []
    seconds_per_row, peak_bytes = list[list[float]](), list[list[float]]()  # of each size
    with options.scratch() as scratch:
        for rows in options.rows:
            log = scratch / f"{rows}.csv"
            settings = options.settings
            settings["rows_read"] = read = generate_log(options, rows, log)
            programs = [PREPARE, _POLARS] if rows == options.polars_rows else [PREPARE]
            sides = take_turns(options.repeats, *(partial(_run, options, program, log) for program in programs))
            log.unlink()
            (seconds, peaks), *others = [([one for one, _ in side], [peak for _, peak in side]) for side in sides]
            seconds_per_row.append([one / read for one in seconds])
            peak_bytes.append(peaks)
            figures += [
                Figure(f"prepare_rows_per_second_{rows}", "rows/s", [read / one for one in seconds], settings),
                Figure(f"prepare_peak_bytes_{rows}", "bytes", peaks, settings),
            ]
            for polars_seconds, polars_peaks in others:
                figures += [
                    Figure("prepare_seconds_over_polars", "ratio", ratios(seconds, polars_seconds), settings),
                    Figure("prepare_peak_bytes_over_polars", "ratio", ratios(peaks, polars_peaks), settings),
                ]
    for name, sizes in (("seconds_per_row", seconds_per_row), ("peak_bytes", peak_bytes)):
        name = f"prepare_{name}_{options.rows[-1]}_over_{options.rows[0]}"
        figures.append(Figure(name, "ratio", ratios(sizes[-1], sizes[0]), settings))
    return figures


def generate_log(options: PrepareBench, rows: int, log: Path) -> int:
    """Writes a synthetic log of about so many rows; returns their number."""
    users, items = rows // _ROWS_OF_A_USER, rows // _ROWS_OF_AN_ITEM
    drift = DriftConfig(
        users=users,
        items=items,
        clusters=min(_CLUSTERS, items),
        interactions=[rows // 2, rows // 2 // _SPANS],
        activity=0.8,
        seed=options.seed,
    )
    planted = GenerateConfig(source="drift", drift=drift, spans=_SPANS, output=log, min_interactions=1)
    return generate(planted, Console(quiet=True))


def _run(options: PrepareBench, program: Path, log: Path) -> tuple[float, float]:
    """Seconds of a preparation from start to end, and its peak of resident bytes."""
    output = log.with_suffix("")
    values = {key: getattr(options, key) for key in _SHARED if getattr(options, key) is not None}
    measured = run_command(program, {"source": "taobao", "input": log, "output": output} | values)
    shutil.rmtree(output, ignore_errors=True)
    return measured


def run_command(program: Path, arguments: dict[str, Any]) -> tuple[float, float]:
    """Runs a program.

    Args:
        program: a Python file.
        arguments: its options, by key.

    Returns:
        Seconds from start to end, and the peak of resident bytes.

    Raises:
        RuntimeError: if it failed.
    """
    command = [sys.executable, str(program), *(f"--{key}={value}" for key, value in arguments.items())]
    begin, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            # The kernel keeps the peak. getrusage would include what this process held when it started the other.
            peak = max(peak, process_memory(process.pid).get("VmHWM", 0))
            time.sleep(_POLL_SECONDS)
        seconds, errors = time.perf_counter() - begin, process.communicate()[1].splitlines()
    if process.returncode:
        raise RuntimeError(f"{program.name} ended with {process.returncode}: {errors[-1] if errors else 'killed?'}")
    return seconds, peak
