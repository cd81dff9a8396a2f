"""All benchmarks of a machine in one run, and one JSON of their figures."""

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
from dist_imsr.benchmarks.machine import machine
from dist_imsr.benchmarks.report import show, write_json
from dist_imsr.benchmarks.world import Device, settle
from dist_imsr.checks import require, require_file
from dist_imsr.config import parse, resolve

_CEILINGS = "ceilings"
_SHARED = ("device", "ranks", "threads")  # of the ceilings and of what is compared with them
_KEY = re.compile(r"--(\w+)\.(.+)", re.DOTALL)


@dataclass(frozen=True)
class AllBench:
    """Runs the benchmarks of a machine one after the other, and writes one JSON: every figure beside the machine's own
    ceilings, measured in the same run. --NAME.KEY VALUE gives a benchmark its own key, as in --rank.users 10000; what
    those are, bench.py NAME --help tells. One that fails stops no other.

    Args:
        json: where the figures are written, with the machine's name and versions; after each benchmark anew.
        parts: which benchmarks are run beside the ceilings; by default all that this device is measured by. span is
            left out unless --span.data is given.
        device: what ranks work on; auto is CUDA where there is a device.
        ranks: processes; 0 for two on the host, and for one on each device of CUDA.
        threads: of each process.
        quick: sizes that take seconds and tell nothing, to see whether all of it works.
    """  # noqa: D205 (the first paragraph is the help)

    json: Path
    parts: list[str] = field(default_factory=list)
    device: Device = "auto"
    ranks: int = 0
    threads: int = 1
    quick: bool = False

    def __post_init__(self) -> None:
        settle(self)
        require(self.threads >= 1, "threads", self.threads, "at least 1")
        known = [name for name, one in BENCHMARKS.items() if one.of_all]
        require(set(self.parts) <= set(known), "parts", self.parts, f"some of {', '.join(known)}")
        require_file(self.json, "json")


def run_all(argv: Sequence[str], console: Console) -> int:
    """Runs the benchmarks, prints their figures and writes them.

    Args:
        argv: the arguments behind ``all``.
        console: where figures are printed.

    Returns:
        The exit status: 0; 2 for refused options, 1 where a benchmark failed, 130 after Ctrl-C or SIGTERM. What was
        measured by then is written.
    """
    own, given = _split(argv)
    options = parse(AllBench, own)
    try:
        chosen, left_out = _chosen(options, given)
    except ValueError as error:
        print(f"bench.py: {error} (bench.py NAME --help lists the keys)", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    told = machine(options.device) | {
        "command": shlex.join(["python", "launch/bench.py", "all", *argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "figures": [],
        "failed": [],
        "left_out": left_out,
        "seconds": {},
        "interrupted": None,
    }
    rates: dict[str, float] = {}
    for name, part in chosen.items():
        print(f"bench.py: {name}", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        try:
            figures = BENCHMARKS[name].measure(part)
            if name == _CEILINGS:
                rates = {figure.name: statistics.median(figure.runs) for figure in figures}
            comparable = rates if getattr(part, "ranks", 1) == options.ranks else {}
            rows = [{"benchmark": name} | figure.row(comparable) for figure in figures]
            show(rows, console)
            told["figures"] += rows
        except KeyboardInterrupt:
            told["interrupted"] = name
        except Exception as error:
            traceback.print_exc()
            told["failed"].append({"benchmark": name, "reason": _reason(error)})
        torch.cuda.empty_cache()  # what this process itself measured on is free for the ranks of the next one
        told["seconds"][name] = round(time.perf_counter() - begin, 3)
        write_json(told, options.json)
        if told["interrupted"]:
            print(f"bench.py: interrupted in {name}; {options.json} has what came before", file=sys.stderr)
            return 130
    for one in told["failed"]:
        print(f"bench.py: {one['benchmark']} failed: {one['reason']}", file=sys.stderr)
    return 1 if told["failed"] else 0


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The arguments of all benchmarks together, and each one's own by its name."""
    own: list[str] = []
    given: dict[str, list[str]] = {name: [] for name in BENCHMARKS}
    taker = own  # of values that follow a key
    for argument in argv:
        match = _KEY.fullmatch(argument)
        if match and match[1] in given:
            taker = given[match[1]]
            argument = f"--{match[2]}"
        elif argument.startswith("--"):
            taker = own
        taker.append(argument)
    return own, given


def _chosen(options: AllBench, given: Mapping[str, list[str]]) -> tuple[dict[str, Any], dict[str, str]]:
    """The options of each benchmark that is to be run, the ceilings first; and why others are not.

    Raises:
        ValueError: naming the key.
    """
    chosen: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name, (tree, _, devices, on_cuda, quick) in BENCHMARKS.items():
        arguments = given[name]
        keys = {argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")}
        wanted = name == _CEILINGS or (name in options.parts if options.parts else options.device in devices)
        if keys and not wanted:
            raise ValueError(f"{name}.{min(keys)}: {name} is not among the parts that are run")
        if not wanted:
            continue
        here = {one.name: one for one in fields(tree)}
        for key in keys & {*_SHARED, "json"}:
            raise ValueError(f"{name}.{key}: is --{key}, of all benchmarks together")
        missing = [
            key for key, one in here.items() if one.default is one.default_factory is MISSING and key not in keys
        ]
        if missing and name not in options.parts:
            left_out[name] = f"--{name}.{missing[0]} was not given"
            continue
        shared = [f"--{key}={getattr(options, key)}" for key in _SHARED if key in here]
        preset = [*shared, *(on_cuda if options.device == "cuda" else ()), *(quick if options.quick else ())]
        try:
            chosen[name] = resolve(tree, [*preset, *arguments])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return {_CEILINGS: chosen.pop(_CEILINGS), **chosen}, left_out


def _reason(error: Exception) -> str:
    """The last line of what is said, which of a rank's traceback tells the error."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
