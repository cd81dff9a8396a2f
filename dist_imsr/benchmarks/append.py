"""Appending one day to prepared data of two lengths, compared with preparing the same rows alone."""

import os
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dist_imsr.benchmarks.options import MAY_BE_ZERO, FolderOptions
from dist_imsr.benchmarks.prepare import PREPARE, run_command
from dist_imsr.benchmarks.report import Figure, ratios
from dist_imsr.benchmarks.world import take_turns
from dist_imsr.checks import require

_DAY = 86_400
_BEGIN = 1_600_041_600  # a midnight in UTC
_ROWS_OF_A_USER, _ROWS_OF_AN_ITEM = 170, 100  # of the shorter history and the day together, as in the paper's Taobao


@dataclass(frozen=True, kw_only=True)
class AppendBench(FolderOptions):
    """Times prepare.py --append on synthetic logs, of the same users and items over more or fewer days.

    Args:
        rows: of a day, and of the log that is appended.
        history: of the shorter history.
        factor: how many times longer the other history is.
        memory_limit: prepare.py's.
        buckets: of users.
        threads: of DuckDB; all that this process may use by default.
        repeats: runs of each side.
        folder: parent of a scratch folder for logs and prepared data, about 30 bytes a row of the histories, which is
            removed at the end; the current directory by default.
        seed: of the logs.
    """

    rows: int = 1_900_000
    history: int = 15_000_000
    factor: int = 10
    memory_limit: str = "4GiB"
    buckets: int = 64
    threads: int | None = None
    repeats: int = 3
    seed: int = field(default=0, metadata=MAY_BE_ZERO)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.history >= 2 * self.rows, "history", self.history, f"at least two days, {2 * self.rows} rows")
        require(self.factor >= 2, "factor", self.factor, "at least 2")

    @property
    def machine(self) -> dict[str, object]:
        """The keys of prepare.py that all sides share."""
        return {"memory_limit": self.memory_limit} | ({"threads": self.threads} if self.threads else {})


def bench_append(options: AppendBench) -> list[Figure]:
    """Measures the seconds and the peak of resident memory of one append.

    Returns:
        Seconds over those of preparing the same rows alone; seconds behind the longer history over those behind the
        shorter one; peaks of memory.

    Raises:
        RuntimeError: if a side failed.
    """
    with options.scratch() as scratch:
        lengths = {"1x": options.history, f"{options.factor}x": options.history * options.factor}
        sides, day = [], 0
        for name, rows in lengths.items():
            day = rows // options.rows
            log = write_days(options, scratch / f"history-{name}.parquet", range(day))
            _prepare(options, log, scratch / f"data-{name}")
            log.unlink()
            new = write_days(options, scratch / f"day-{name}.parquet", range(day, day + 1))
            sides.append(partial(_append, options, scratch / f"data-{name}", new))
        sides.append(partial(_prepare_alone, options, new))
        (short, short_peak), (long, long_peak), (alone, _) = (
            ([one for one, _ in side], [peak for _, peak in side]) for side in take_turns(options.repeats, *sides)
        )
    settings = options.settings
    return [
        Figure("append_seconds", "s", short, settings),
        Figure("append_seconds_over_prepare_of_the_same_rows", "ratio", ratios(short, alone), settings),
        Figure(f"append_seconds_at_{options.factor}x_history_over_1x", "ratio", ratios(long, short), settings),
        Figure("append_peak_bytes_1x", "bytes", short_peak, settings),
        Figure(f"append_peak_bytes_{options.factor}x", "bytes", long_peak, settings),
    ]


def write_days(options: AppendBench, path: Path, days: range) -> Path:
    """Writes a log of ``options.rows`` interactions a day; users and items are the same on all days.

    Args:
        options: of the benchmark.
        path: of a Parquet file.
        days: their numbers; the rows of a day do not depend on the others.
    """
    total = options.history + options.rows
    users, items = total // _ROWS_OF_A_USER, total // _ROWS_OF_AN_ITEM
    schema = pa.schema([("user", pa.int64()), ("item", pa.int64()), ("time", pa.int64())])
    with pq.ParquetWriter(path, schema) as file:
        for day in days:
            draw = np.random.default_rng((options.seed, day))
            times = np.sort(draw.integers(0, _DAY, options.rows)) + _BEGIN + day * _DAY
            # A power of a uniform number prefers small ids, as a few users and items are busy in real logs.
            columns = (users * draw.random(options.rows) ** 2, items * draw.random(options.rows) ** 3)
            ids = [column.astype(np.int64) for column in columns]
            file.write_table(pa.table([*ids, times], schema=schema))
    return path


def _prepare(options: AppendBench, log: Path, output: Path) -> tuple[float, float]:
    spans = {"span_every": "1d", "pretrain_until": _BEGIN + _DAY * (options.history // options.rows // 2)}
    keys = {"source": "parquet", "input": log, "output": output, "min_interactions": 1, "buckets": options.buckets}
    return run_command(PREPARE, keys | spans | options.machine)


def _append(options: AppendBench, data: Path, log: Path) -> tuple[float, float]:
    """Appends to a copy of prepared data, whose files are never changed and can be shared."""
    copy = data.with_name(f"{data.name}-copy")
    shutil.copytree(data, copy, copy_function=os.link)
    measured = run_command(PREPARE, {"append": copy, "input": log} | options.machine)
    shutil.rmtree(copy)
    return measured


def _prepare_alone(options: AppendBench, log: Path) -> tuple[float, float]:
    """Prepares the day alone, as one span."""
    output = log.with_suffix("")
    day = int(pq.read_table(log, columns=["time"])["time"][0].as_py()) // _DAY
    keys = {"source": "parquet", "input": log, "output": output, "min_interactions": 1, "buckets": options.buckets}
    measured = run_command(PREPARE, keys | {"span_edges": f"[{(day + 1) * _DAY}]"} | options.machine)
    shutil.rmtree(output)
    return measured
