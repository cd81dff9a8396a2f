"""Throws mutated logs at prepare.py: each must be refused in one line, or be read as an independent reading does.

    python -m tests.data.mutations --count 1000 --seed 0
    python -m tests.data.mutations --seed 0 --only 17 --keep /tmp/17

Number N of a seed is always the same input. The exit status is 1 if any input failed.
"""

import argparse
import contextlib
import io
import itertools
import json
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq

from launch.prepare import main as prepare
from tests.data import mutators, table_mutators
from tests.data.raw_logs import LOGS, Log
from tests.data.raw_parquet import parquet_readings
from tests.data.raw_reading import Format, Reading, readings
from tests.data.slow_preparation import names_of, read, shared_edges, slowly

READ, REFUSED, TRACEBACK, WRONG, UNTIDY = "read", "refused", "traceback", "silently wrong", "untidy refusal"
GOOD = (READ, REFUSED)
ALPHA, SPANS = 0.5, 2
NAMES = (*LOGS, *["parquet"] * 4, "taobao", "compressed", "quoted, doubled")


@dataclass
class Case:
    """A mutated log, the names of its mutations, and the options of its preparation."""

    log: Log
    names: list[str]
    buckets: int

    def arguments(self, folder: Path) -> list[str]:
        """The command line; the output is FOLDER/out."""
        log = self.log
        files = ["--source", log.form.source, "--input", str(folder / "log"), "--output", str(folder / "out")]
        fixed = ["--min_interactions", "1", "--spans", str(SPANS), "--buckets", str(self.buckets), "--threads", "1"]
        return [*files, *fixed, "--max_bad_fraction", str(float(log.form.max_bad)), *log.options]


@dataclass
class Outcome:
    """What became of a case, and why it is no good one; `clear` if a log was refused that has a reading."""

    kind: str
    details: str = ""
    clear: bool = False
    seconds: float = field(default=0, compare=False)


def make_case(seed: int, number: int, mutated: bool = True) -> Case:
    """The case of a number.

    Args:
        seed: of the generator.
        number: of the case.
        mutated: False for the log as it was before its mutations.

    Returns:
        The log with its bytes, and what was done to it.
    """
    draw = random.Random(f"{seed} {number}")
    name = NAMES[number % len(NAMES)]
    log = LOGS[name](draw)
    if draw.random() < 0.6:
        log.form = replace(log.form, max_bad=Fraction(3, 10))
    buckets = draw.choice((1, 2))
    names = _mutate(draw, log, draw.choice((1, 1, 2, 3)) if mutated else 0)
    log.form = replace(log.form, header=log.form.header and not mutated)
    return Case(log, [name, *names], buckets)


def _mutate(draw: random.Random, log: Log, count: int) -> list[str]:
    """Applies mutations in the order of their levels; returns their names."""
    if log.table is not None:
        levels = [table_mutators.TABLE, table_mutators.TABLE, mutators.PACKED]
    else:
        levels = [mutators.CELLS, mutators.LINES, mutators.TEXT] + [mutators.PACKED] * bool(log.compress)
    chosen = sorted(draw.choices(range(len(levels)), k=count))
    names = []
    last = len(levels) - 1 if log.table is not None or log.compress else len(levels)
    for level in range(len(levels)):
        if log.table is None and level == 1:
            log.join()
        if level == 2:
            log.render()
        if level == last:
            log.undamaged = log.data = log.compress(log.data) if log.compress else log.data
        for _ in range(chosen.count(level)):
            mutation = draw.choice(levels[level])
            mutation(draw, log)
            names.append(mutation.__name__)
    log.undamaged = log.undamaged or log.data
    return names


def all_readings(log: Log, folder: Path) -> Iterator[Reading]:
    """The readings of a log, and those from before its compressed bytes were damaged: a harmless damage is one."""
    for name, data in {"log": log.data, "undamaged": log.undamaged}.items():
        if name == "undamaged" and data == log.data:
            return
        if log.form.source == "parquet":
            path = folder / f"{name}.copy"
            path.write_bytes(data)
            yield from parquet_readings(path, log.form)
            path.unlink()
        else:
            yield from readings(data, log.form)


def check(case: Case, folder: Path) -> Outcome:
    """Runs prepare.py on a case, in an empty folder, and judges what it did."""
    (folder / "log").write_bytes(case.log.data)
    start = time.perf_counter()
    status, errors = run_command(case.arguments(folder))
    seconds = time.perf_counter() - start
    outcome = _judge(case, folder, status, errors)
    outcome.seconds = seconds
    return outcome


def run_command(arguments: list[str]) -> tuple[int | str, str]:
    """Runs prepare.py in this process; returns its exit status, or a traceback, and its standard error."""
    errors, status = io.StringIO(), 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", ["prepare.py", *arguments]))
        stack.enter_context(mock.patch.object(signal, "signal"))
        stack.enter_context(contextlib.redirect_stderr(errors))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        try:
            status = prepare()
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else 1
        except Exception:
            return traceback.format_exc(), errors.getvalue()
    return status, errors.getvalue()


def _judge(case: Case, folder: Path, status: int | str, errors: str) -> Outcome:
    if isinstance(status, str):
        return Outcome(TRACEBACK, status)
    left = sorted(path.name for path in folder.iterdir())
    if status == 0:
        return _compare(case, folder)
    lines = errors.splitlines()
    starts = [line.startswith("prepare.py: ") for line in lines]
    faults = {
        f"exit status {status}": status != 2,
        "not one line that starts with prepare.py": sum(starts) != 1 or not starts[-1],
        "a traceback": "Traceback" in errors,
        "the file is not named": not any(str(folder / "log") in line for line in lines[-1:]),
        f"files {left} are left": left != ["log"],
    }
    if any(faults.values()):
        return Outcome(UNTIDY, "; ".join(fault for fault, true in faults.items() if true) + "\n" + errors)
    clear = any(expected(reading, case.buckets) for reading in itertools.islice(all_readings(case.log, folder), 1))
    return Outcome(REFUSED, lines[-1], clear)


def expected(reading: Reading, buckets: int) -> dict[str, Any] | None:
    """The prepared folder of a reading; None if it spans too little time."""
    edges = shared_edges(reading.rows, 1, ALPHA, SPANS)
    return slowly(reading.rows, edges, 1, buckets) if edges else None


def _compare(case: Case, folder: Path) -> Outcome:
    """Whether the prepared folder is that of a reading, with the rejected rows that the reading rejects."""
    prepared = read(folder / "out")
    counts = prepared_counts(folder / "out", case.log.form)
    differences = []
    for reading in all_readings(case.log, folder):
        bad = len(reading.bad_lines)
        lines = tuple(sorted(set(reading.bad_lines)))
        wanted = (reading.total, bad, None if case.log.form.source == "parquet" else lines)
        if prepared != expected(reading, case.buckets):
            differences.append(_difference(prepared, reading))
        elif counts != wanted:
            differences.append(f"the rows are right; all, bad and bad lines are {counts} instead of {wanted}")
        else:
            return Outcome(READ)
    return Outcome(WRONG, min(differences, key=len) if differences else "the log has no reading")


def _difference(prepared: dict[str, Any], reading: Reading) -> str:
    users, items = (names_of(prepared, table) for table in ("users", "items"))
    found = Counter(
        (users[user], items[item], when)
        for sequences in prepared["sequences"].values()
        for user, sequence in sequences.items()
        for item, when, _ in sequence
    )
    more, less = list((found - Counter(reading.rows)).elements()), list((Counter(reading.rows) - found).elements())
    return f"rows {more} instead of {less}" if more or less else "the same rows in another order"


def prepared_counts(output: Path, form: Format) -> tuple[int, int, tuple[int, ...] | None]:
    """The rows read, the rejected ones, and their lines."""
    [record] = json.loads((output / "dataset.json").read_text())["preparations"]
    lines = pq.read_table(output / "rejected" / "0000.parquet")["line"].to_pylist()
    rejected = sum(record["rejected"].values())
    return record["rows_read"], rejected, None if form.source == "parquet" else tuple(sorted(lines))


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the one number to repeat, with all details")
    parser.add_argument("--keep", type=Path, help="an existing folder for the input of --only")
    parser.add_argument("--verbose", action="store_true", help="a line for each input, before it is run")
    arguments = parser.parse_args()
    numbers = range(arguments.count) if arguments.only is None else [arguments.only]
    counts, clear, seconds = Counter[str](), 0, 0.0
    for number in numbers:
        case = make_case(arguments.seed, number)
        if arguments.verbose or arguments.only is not None:
            print(number, *case.names, sep="; ", flush=True)
        if arguments.keep:
            (arguments.keep / "log").write_bytes(case.log.data)
            print(*case.arguments(arguments.keep))
        with tempfile.TemporaryDirectory() as folder:
            outcome = check(case, Path(folder))
        counts[outcome.kind] += 1
        clear += outcome.clear
        seconds += outcome.seconds
        if outcome.kind not in GOOD or arguments.only is not None:
            details = outcome.details if arguments.only is not None else outcome.details.strip().splitlines()[-1][:400]
            print(f"--seed {arguments.seed} --only {number}: {outcome.kind} ({', '.join(case.names)}): {details}")
    kinds = (READ, REFUSED, TRACEBACK, WRONG, UNTIDY)
    print(", ".join(f"{counts[kind]} {kind}" for kind in kinds) + f"; {seconds / len(numbers):.3f} s each")
    print(f"{clear} of the refused ones have a reading")
    return int(any(counts[kind] for kind in kinds if kind not in GOOD))


if __name__ == "__main__":
    sys.exit(main())
