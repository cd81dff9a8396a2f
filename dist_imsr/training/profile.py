"""Seconds and memory of each span by phase, over all ranks: run_dir/phases.jsonl, and optional traces and a table."""

import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import profile, record_function, schedule

from dist_imsr.console import output_console
from dist_imsr.devices import profiler_activities
from dist_imsr.distributed.topology import Topology
from dist_imsr.files import write_whole
from dist_imsr.phases import clock
from dist_imsr.sheet import Sheet

logger = logging.getLogger(__name__)

AnyBatch = TypeVar("AnyBatch")
FILE, FOLDER = "phases.jsonl", "profile"
_SKIPPED, _TRACED = 5, 3  # steps of a span's training; the first ones are not representative
_CAPTION = (
    "Seconds of each span by phase, means over ranks; total is the slowest rank's. An indented phase is a part of the "
    "phase above it. An all-to-all includes waiting for slower ranks."
)


class Profile:
    """Measures one rank's spans.

    Args:
        run_dir: the run's folder.
        topology: of the ranks.
        detailed: whether to write traces and a table as well.
    """

    def __init__(self, run_dir: Path, topology: Topology, detailed: bool) -> None:
        self._run_dir, self._topology, self._detailed = run_dir, topology, detailed
        self._traced: int | None = None  # the latest span with a trace
        if detailed:
            (run_dir / FOLDER).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def measure_span(self, span: int, resumed: bool) -> Iterator[None]:
        """Measures a span inside this context, and writes its line unless it ends in an exception; collective.

        Args:
            span: its number.
            resumed: whether an earlier process trained a part of it, which is not measured.
        """
        clock.start(self._topology.device, exact=self._detailed)
        try:
            yield
        finally:
            measured = clock.stop()
        memory = {name: asdict(phase) for name, phase in measured.memory.items()}
        report = json.dumps({"seconds": measured.seconds, "memory": memory}).encode()
        packed = torch.frombuffer(bytearray(report), dtype=torch.uint8)
        ranks = self._topology.gather_jagged([packed.to(self._topology.device)])
        if self._topology.rank == 0:
            reports = [json.loads(bytes(part.tolist())) for (part,) in ranks]
            with _disk_errors_logged(f"{self._run_dir / FILE}, the phases of span {span}"):
                _write(self._run_dir, [*read(self._run_dir), _line(span, resumed, reports)])

    def trace_steps(self, batches: Iterable[AnyBatch], span: int, steps: int) -> Iterator[AnyBatch]:
        """Passes the batches of an epoch through; a detailed profile traces some steps of each span.

        Args:
            batches: of the epoch.
            span: its number.
            steps: number of batches.

        Yields:
            The batches.
        """
        if not self._detailed or self._traced == span or steps < 2:  # one to warm up, at least one to trace
            yield from batches
            return
        self._traced = span
        path = self._run_dir / FOLDER / f"span={span:02d}-rank={self._topology.rank:04d}.json.gz"
        with profile(
            activities=profiler_activities(self._topology.device),
            schedule=schedule(wait=max(0, min(_SKIPPED, steps - _TRACED - 1)), warmup=1, active=_TRACED, repeat=1),
            on_trace_ready=lambda trace: _export(trace, path),
        ) as steps_traced:
            clock.trace = record_function
            try:
                for batch in batches:
                    yield batch
                    steps_traced.step()
            finally:
                clock.trace = None


def show(run_dir: Path) -> None:
    """Prints a detailed profile's table of all spans, and writes it next to the traces."""
    (run_dir / FOLDER).mkdir(exist_ok=True)
    sheet = table(read(run_dir), f"{run_dir}: phases")
    write_whole(run_dir / FOLDER / "phases.md", sheet.markdown())
    sheet.show(output_console())


def read(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's phases.jsonl, one for each span that was measured to its end."""
    path = run_dir / FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep_before(run_dir: Path, span: int) -> None:
    """Removes the lines of a span and of later ones, which a resumed run writes again."""
    _write(run_dir, [line for line in read(run_dir) if line["span"] < span])


def table(lines: Sequence[dict[str, Any]], title: str) -> Sheet:
    """Seconds by phase and span.

    Args:
        lines: of phases.jsonl.
        title: above it.

    Returns:
        The table.
    """
    longest: defaultdict[str, float] = defaultdict(float)
    for line in lines:
        for path, seconds in line["seconds"].items():
            longest[path] -= seconds["mean"]

    def sort_key(path: str) -> list[float]:  # the longest first, each followed by its parts
        return [longest[above] for above in itertools.accumulate(path.split("/"), "{}/{}".format)]

    def row(path: str) -> list[str]:
        *above, name = path.split("/")
        values = [line["seconds"].get(path, {}).get("mean") for line in lines]
        return ["· " * len(above) + name, *("-" if value is None else f"{value:.2f}" for value in values)]

    total = ["total", *(f"{line['total_seconds']:.2f}" for line in lines)]
    peaks = ["peak memory, MiB, all ranks", *(f"{line['peak_bytes'] / 2**20:,.0f}" for line in lines)]
    columns = ["phase", *(f"span {line['span']}{' (resumed)' * line['resumed']}" for line in lines)]
    return Sheet(title, _CAPTION, columns, [*map(row, sorted(longest, key=sort_key)), total, peaks], labels=1)


def _write(run_dir: Path, lines: Sequence[dict[str, Any]]) -> None:
    write_whole(run_dir / FILE, "".join(json.dumps(line) + "\n" for line in lines))


def _export(trace: profile, path: Path) -> None:
    with _disk_errors_logged(f"the trace {path}"):
        trace.export_chrome_trace(str(path))


@contextmanager
def _disk_errors_logged(file: str) -> Iterator[None]:
    """Logs an error of the disk instead of raising it: a full disk must not end a run because of its profile."""
    try:
        yield
    except OSError as error:
        logger.warning("%s: not written: %s", file, error)


def _line(span: int, resumed: bool, reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The line of phases.jsonl for all ranks' reports."""
    seconds, memory = ([report[name] for report in reports] for name in ("seconds", "memory"))
    totals = [sum(value for path, value in rank.items() if "/" not in path) for rank in seconds]
    paths = dict.fromkeys(path for rank in seconds for path in sorted(rank))
    by_path = {path: [rank.get(path, 0.0) for rank in seconds] for path in paths}
    kinds = ("peak", "own", "files", "device")
    nothing = dict.fromkeys(kinds, 0)
    phases = dict.fromkeys(name for rank in memory for name in rank)

    def sum_of_peaks(kind: str) -> int:
        return sum(max(phase[kind] for phase in rank.values()) for rank in memory)

    return {
        "span": span,
        "resumed": resumed,
        "total_seconds": max(totals),
        "peak_bytes": sum_of_peaks("peak"),
        "own_bytes": sum_of_peaks("own"),
        "device_bytes": sum_of_peaks("device"),
        "seconds": {path: {"mean": sum(values) / len(values), "max": max(values)} for path, values in by_path.items()},
        "memory": {
            name: {kind: [rank.get(name, nothing)[kind] for rank in memory] for kind in kinds} for name in phases
        },
    }
