"""What each span took, phase by phase and over all ranks: run_dir/phases.jsonl, and on request traces and a table."""

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
_SKIPPED, _TRACED = 5, 3  # steps of a span's training: the first ones are unlike the others
_CAPTION = (
    "Seconds of each span by phase, means over ranks; total is the slowest rank's. What is indented is a part of the "
    "phase above it. An all-to-all includes waiting for slower ranks."
)


class Profile:
    """One rank's account of a run, span by span.

    Args:
        run_dir: the run's folder.
        topology: this rank's place.
        asked: whether traces and a table are wanted.
    """

    def __init__(self, run_dir: Path, topology: Topology, asked: bool) -> None:
        self._run_dir, self._topology, self._asked = run_dir, topology, asked
        self._traced: int | None = None  # the span whose training is traced already
        if asked:
            (run_dir / FOLDER).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def of(self, span: int, resumed: bool) -> Iterator[None]:
        """Measures a span; collective. One that ends in an exception leaves no line.

        Args:
            span: at hand.
            resumed: whether an earlier process did a part of it, which is not told of.
        """
        clock.start(self._topology.device, exact=self._asked)
        try:
            yield
        finally:
            mine = clock.stop()
        told = {"seconds": mine.seconds, "memory": {name: asdict(one) for name, one in mine.memory.items()}}
        packed = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
        ranks = self._topology.gather_jagged([packed.to(self._topology.device)])
        if self._topology.rank == 0:
            accounts = [json.loads(bytes(part.tolist())) for (part,) in ranks]
            with _optional(f"{self._run_dir / FILE}, the phases of span {span}"):
                _write(self._run_dir, [*read(self._run_dir), _line(span, resumed, accounts)])

    def traced(self, batches: Iterable[AnyBatch], span: int, steps: int) -> Iterator[AnyBatch]:
        """Passes the batches of an epoch through; writes a trace of a few steps of each span, where it is wanted.

        Args:
            batches: of the epoch.
            span: at hand.
            steps: how many there are.

        Yields:
            The batches.
        """
        if not self._asked or self._traced == span or steps < 2:  # one to warm up, and one at least to trace
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

    def show(self) -> None:
        """Prints the table of all spans on rank 0 and writes it beside the traces, where it is wanted."""
        if self._asked and self._topology.rank == 0:
            sheet = table(read(self._run_dir), f"{self._run_dir}: phases")
            write_whole(self._run_dir / FOLDER / "phases.md", sheet.markdown())
            sheet.show(output_console())


def read(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of phases.jsonl.

    Args:
        run_dir: the run's folder.

    Returns:
        One for each span that was measured to its end, in their order.
    """
    path = run_dir / FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep_before(run_dir: Path, span: int) -> None:
    """Drops the lines of spans that a run which goes on does again.

    Args:
        run_dir: the run's folder.
        span: the first of them.
    """
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

    def place(path: str) -> list[float]:  # the longest first, each followed by its parts
        return [longest[above] for above in itertools.accumulate(path.split("/"), "{}/{}".format)]

    def row(path: str) -> list[str]:
        *above, name = path.split("/")
        values = [line["seconds"].get(path, {}).get("mean") for line in lines]
        return ["· " * len(above) + name, *("-" if value is None else f"{value:.2f}" for value in values)]

    total = ["total", *(f"{line['total_seconds']:.2f}" for line in lines)]
    peaks = ["peak memory, MiB, all ranks", *(f"{line['peak_bytes'] / 2**20:,.0f}" for line in lines)]
    columns = ["phase", *(f"span {line['span']}{' (resumed)' * line['resumed']}" for line in lines)]
    return Sheet(title, _CAPTION, columns, [*map(row, sorted(longest, key=place)), total, peaks], labels=1)


def _write(run_dir: Path, lines: Sequence[dict[str, Any]]) -> None:
    write_whole(run_dir / FILE, "".join(json.dumps(line) + "\n" for line in lines))


def _export(trace: profile, path: Path) -> None:
    with _optional(f"the trace {path}"):
        trace.export_chrome_trace(str(path))


@contextmanager
def _optional(what: str) -> Iterator[None]:
    """A disk that is full is no reason to end a run: what is to be written there is only told of."""
    try:
        yield
    except OSError as error:
        logger.warning("%s: not written: %s", what, error)


def _line(span: int, resumed: bool, accounts: list[dict[str, Any]]) -> dict[str, Any]:
    """All ranks' accounts as one line of phases.jsonl."""
    seconds, memory = ([account[what] for account in accounts] for what in ("seconds", "memory"))
    totals = [sum(value for path, value in one.items() if "/" not in path) for one in seconds]
    phases: dict[str, None] = dict.fromkeys(path for one in seconds for path in sorted(one))
    taken = {path: [one.get(path, 0.0) for one in seconds] for path in phases}
    nothing = dict.fromkeys(("peak", "own", "files", "device"), 0)
    seen = dict.fromkeys(name for one in memory for name in one)

    def most(what: str) -> int:
        return sum(max(phase[what] for phase in one.values()) for one in memory)

    return {
        "span": span,
        "resumed": resumed,
        "total_seconds": max(totals),
        "peak_bytes": most("peak"),
        "own_bytes": most("own"),
        "device_bytes": most("device"),
        "seconds": {path: {"mean": sum(values) / len(values), "max": max(values)} for path, values in taken.items()},
        "memory": {name: {what: [one.get(name, nothing)[what] for one in memory] for what in nothing} for name in seen},
    }
