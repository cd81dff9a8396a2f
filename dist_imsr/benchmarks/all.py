"""All benchmarks of a machine in one run, and one JSON file of their figures."""

import re
import shlex
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dist_imsr.benchmarks import BENCHMARKS
from dist_imsr.benchmarks.options import Options, WorldOptions
from dist_imsr.benchmarks.report import show, write_json
from dist_imsr.checks import require
from dist_imsr.config import parse, resolve
from dist_imsr.machine import machine

_CEILINGS = "ceilings"
_SHARED = ("device", "ranks", "threads")  # by the ceilings and the figures that are compared with them
_PART_KEY = re.compile(r"--(\w+)\.(.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class AllBench(WorldOptions):
    """Runs the benchmarks of a machine one after the other and writes one JSON file, with every figure next to the
    machine's own ceiling, measured in the same run. --NAME.KEY VALUE sets a benchmark's own key, as in --rank.users
    10000; bench.py NAME --help lists them. A benchmark that fails does not stop the others.

    Args:
        json: a file for the figures and the machine's name and versions; it is replaced after each benchmark.
        parts: benchmarks to run besides the ceilings; by default all for this kind of device. span is left out unless
            --span.data is set.
        quick: tiny sizes that take seconds, to see whether everything works; the figures mean nothing.
    """  # noqa: D205 (the first paragraph is the help)

    json: Path = field()  # without a default
    parts: list[str] = field(default_factory=list)
    quick: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        known = [name for name, one in BENCHMARKS.items() if one.device_types]
        require(set(self.parts) <= set(known), "parts", self.parts, f"some of {', '.join(known)}")


def run_all(argv: Sequence[str], console: Console) -> int:
    """Runs the benchmarks, prints their figures and writes them.

    Args:
        argv: the arguments after ``all``.
        console: where figures are printed.

    Returns:
        The exit status: 0; 2 for refused options, 1 where a benchmark failed, 130 after Ctrl-C or SIGTERM. What was
        measured by then is written.
    """
    own, of_parts = _split(argv)
    options = parse(AllBench, own)
    try:
        parts, left_out = select_parts(options, of_parts)
    except ValueError as error:
        print(f"bench.py: {error} (bench.py NAME --help lists the keys)", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report = machine(options.device) | {
        "command": shlex.join(["python", "launch/bench.py", "all", *argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "figures": [],
        "failed": [],
        "left_out": left_out,
        "seconds": {},
        "interrupted": None,
    }
    rates: dict[str, float] = {}
    for name, part in parts.items():
        print(f"bench.py: {name}", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        try:
            figures = BENCHMARKS[name].measure(part)
            if name == _CEILINGS:
                rates = {figure.name: statistics.median(figure.runs) for figure in figures}
            comparable = rates if getattr(part, "ranks", 1) == options.ranks else {}
            rows = [{"benchmark": name} | figure.row(comparable) for figure in figures]
            show(rows, console)
            report["figures"] += rows
        except KeyboardInterrupt:
            report["interrupted"] = name
        except Exception as error:
            traceback.print_exc()
            report["failed"].append({"benchmark": name, "reason": _reason(error)})
        torch.cuda.empty_cache()  # for the ranks of the next benchmark
        report["seconds"][name] = round(time.perf_counter() - begin, 3)
        write_json(report, options.json)
        if report["interrupted"]:
            print(f"bench.py: interrupted in {name}; {options.json} has the figures before it", file=sys.stderr)
            return 130
    for one in report["failed"]:
        print(f"bench.py: {one['benchmark']} failed: {one['reason']}", file=sys.stderr)
    return 1 if report["failed"] else 0


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The arguments of `AllBench`, and those of each benchmark."""
    own: list[str] = []
    of_parts: dict[str, list[str]] = {name: [] for name in BENCHMARKS}
    target = own  # also of the values that follow a key
    for argument in argv:
        match = _PART_KEY.fullmatch(argument)
        if match and match[1] in of_parts:
            target = of_parts[match[1]]
            argument = f"--{match[2]}"
        elif argument.startswith("--"):
            target = own
        target.append(argument)
    return own, of_parts


def select_parts(options: AllBench, arguments: Mapping[str, list[str]]) -> tuple[dict[str, Options], dict[str, str]]:
    """Selects the benchmarks to run and reads their options.

    Args:
        options: of all benchmarks together.
        arguments: of each benchmark, by name.

    Returns:
        The options of each benchmark to run, the ceilings first; and why others are left out.

    Raises:
        ValueError: naming the key.
    """
    parts: dict[str, Options] = {}
    left_out: dict[str, str] = {}
    for name, benchmark in BENCHMARKS.items():
        own = arguments[name]
        keys = {argument[2:].partition("=")[0] for argument in own if argument.startswith("--")}
        by_default = options.device in benchmark.device_types
        if not (name == _CEILINGS or (name in options.parts if options.parts else by_default)):
            if keys:
                raise ValueError(f"{name}.{min(keys)}: {name} is not among the parts that are run")
            continue
        for key in keys & {*_SHARED, "json"}:
            raise ValueError(f"{name}.{key}: is --{key}, of all benchmarks together")
        missing = _required(benchmark.options) - keys
        if missing and name not in options.parts:
            left_out[name] = f"--{name}.{min(missing)} was not given"
            continue
        known = {one.name for one in fields(benchmark.options)}
        shared = [f"--{key}={getattr(options, key)}" for key in _SHARED if key in known]
        cuda = benchmark.cuda_arguments if options.device == "cuda" else ()
        quick = benchmark.quick_arguments if options.quick else ()
        try:
            parts[name] = resolve(benchmark.options, [*shared, *cuda, *quick, *own])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return {_CEILINGS: parts.pop(_CEILINGS), **parts}, left_out


def _required(options: type[Any]) -> set[str]:
    return {one.name for one in fields(options) if one.default is one.default_factory is MISSING}


def _reason(error: Exception) -> str:
    """The last line of an error's text; of a rank's traceback that is the error itself."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
