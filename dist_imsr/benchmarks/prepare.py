"""Preparing raw logs of several sizes with launch/prepare.py, and with the same steps in Polars."""

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from dist_imsr.benchmarks.report import Figure, ratios
from dist_imsr.benchmarks.world import settings_of
from dist_imsr.checks import require, require_file, require_folder
from dist_imsr.data.drift import DriftConfig
from dist_imsr.data.generate import GenerateConfig, generate
from dist_imsr.data.prepare import PrepareConfig
from dist_imsr.phases import process_memory

_OURS = Path(__file__).parents[2] / "launch" / "prepare.py"
_POLARS = Path(__file__).with_name("polars_prepare.py")
_ROWS_OF_A_USER, _ROWS_OF_AN_ITEM, _SPANS = 175, 100, 6  # as in the paper's Taobao
_CLUSTERS = 1000
_SHARED = ("buckets", "memory_limit", "threads")  # with prepare.py
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class PrepareBench:
    """Times launch/prepare.py on made-up logs in UserBehavior's format, users and items in proportion to rows.

    Args:
        rows: about how many each log has, the fewest first.
        polars_rows: which of them is also prepared with Polars.
        memory_limit: prepare.py's.
        buckets: of users.
        threads: of DuckDB and of Polars; all that this process may use by default.
        repeats: runs of each side and size.
        folder: where logs and prepared data are written, about 90 bytes a row, and removed at the end; the current
            directory by default.
        seed: of the logs.
        json: where the figures are written as a list of objects.
    """

    rows: list[int] = field(default_factory=lambda: [1_700_000, 17_000_000, 170_000_000])
    polars_rows: int = 17_000_000
    memory_limit: str = "4GiB"
    buckets: int = 64
    threads: int | None = None
    repeats: int = 3
    folder: Path | None = None
    seed: int = 0
    json: Path | None = None

    def __post_init__(self) -> None:
        require(bool(self.rows) and min(self.rows) >= 10_000, "rows", self.rows, "numbers of at least 10000")
        require(self.rows == sorted(set(self.rows)), "rows", self.rows, "the fewest first")
        require(self.polars_rows in self.rows, "polars_rows", self.polars_rows, f"one of rows, {self.rows}")
        require(self.repeats >= 1, "repeats", self.repeats, "at least 1")
        # What prepare.py itself would refuse.
        PrepareConfig(source="taobao", output=Path(), **{key: getattr(self, key) for key in _SHARED})
        require_folder(self.folder or Path(), "folder")
        require_file(self.json, "json")


def bench_prepare(options: PrepareBench) -> list[Figure]:
    """Measures rows/s and the peak of resident memory at each size, how they grow, and both over Polars'.

    Args:
        options: the subcommand's.

    Returns:
        The figures; sizes in their names are those asked for, and ``rows_read`` of their settings those of the log.

    Raises:
        RuntimeError: if a side failed, as for memory.
    """
    figures = []
    sizes: dict[int, tuple[list[float], list[float]]] = {}  # seconds a row, and peaks
    with tempfile.TemporaryDirectory(dir=options.folder or Path(), prefix="bench-") as scratch:
        for rows in options.rows:
            log = Path(scratch) / f"{rows}.csv"
            settings = settings_of(options)
            settings["rows_read"] = read = _generate(options, rows, log)
            programs = [_OURS, _POLARS] if rows == options.polars_rows else [_OURS]
            runs = [[_run(options, program, log) for program in programs] for _ in range(options.repeats)]
            log.unlink()
            (seconds, peaks), *plain = [
                ([run[0] for run in side], [run[1] for run in side]) for side in zip(*runs, strict=True)
            ]
            sizes[rows] = [one / read for one in seconds], peaks
            figures += [
                Figure(f"prepare_rows_per_second_{rows}", "rows/s", [read / one for one in seconds], settings),
                Figure(f"prepare_peak_bytes_{rows}", "bytes", peaks, settings),
            ]
            for plain_seconds, plain_peaks in plain:
                figures += [
                    Figure("prepare_seconds_over_polars", "ratio", ratios(seconds, plain_seconds), settings),
                    Figure("prepare_peak_bytes_over_polars", "ratio", ratios(peaks, plain_peaks), settings),
                ]
    few, many = options.rows[0], options.rows[-1]
    for place, name in enumerate(("seconds_per_row", "peak_bytes")):
        growth = ratios(sizes[many][place], sizes[few][place])
        figures.append(Figure(f"prepare_{name}_{many}_over_{few}", "ratio", growth, settings))
    return figures


def _generate(options: PrepareBench, rows: int, log: Path) -> int:
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
    """Seconds of a command from its start to its end, and the most bytes that it ever held."""
    output = log.with_suffix("")
    shared = [
        text for key in _SHARED if (value := getattr(options, key)) is not None for text in (f"--{key}", str(value))
    ]
    command: list[str | Path] = [
        sys.executable,
        program,
        "--source",
        "taobao",
        "--input",
        log,
        "--output",
        output,
        *shared,
    ]
    begin, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            # The kernel keeps the peak; getrusage would count what this process held when it started the other.
            peak = max(peak, process_memory(process.pid).get("VmHWM", 0))
            time.sleep(_POLL_SECONDS)
        seconds, said = time.perf_counter() - begin, process.communicate()[1].splitlines()
    shutil.rmtree(output, ignore_errors=True)
    if process.returncode:
        raise RuntimeError(f"{program.name} ended with {process.returncode}: {said[-1] if said else 'killed?'}")
    return seconds, peak
