"""Time and memory of a process by named phase.

Any module marks its part of the work with a `Phase`. Phases are always measured; a run reads the `clock` once a span.
"""

import functools
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, ContextDecorator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dist_imsr import devices

logger = logging.getLogger(__name__)

OTHER = "other"
_LONG = 5.0  # seconds; longer phases without a progress bar are logged at level INFO


@dataclass
class PhaseMemory:
    """Maximal bytes of a phase over all its occurrences.

    Args:
        peak: the kernel's high-water mark of resident memory during the phase, mapped files included.
        own: resident at its end, without mapped files (page cache, which the kernel can reclaim).
        files: resident at its end in mapped files: libraries and prepared data.
        device: the peak allocation on the CUDA device during the phase.
    """

    peak: int = 0
    own: int = 0
    files: int = 0
    device: int = 0


@dataclass
class PhaseTotals:
    """Time and memory of all phases between `Clock.start` and `Clock.stop`.

    Args:
        seconds: by path; ``training/lookup`` is a part of ``training``. The outermost phases and ``other``, the time
            outside of any phase, add up to the whole time.
        memory: of the outermost phases.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    memory: dict[str, PhaseMemory] = field(default_factory=lambda: defaultdict(PhaseMemory))


class _OpenPhase(NamedTuple):
    path: str
    begin: float
    trace: AbstractContextManager[Any] | None


class Clock:
    """Measures the phases of one thread; a process has one, `clock`."""

    def __init__(self) -> None:
        self.trace: Callable[[str], AbstractContextManager[Any]] | None = None
        """Makes a context to enter with each phase, given its path, e.g. ``torch.profiler.record_function``."""
        self._totals = PhaseTotals()
        self._open = list[_OpenPhase]()
        self._last_change = 0.0  # when an outermost phase began or ended
        self._meter: _Meter | None = None
        self._wait: Callable[[], None] | None = None

    def start(self, device: torch.device, exact: bool = False) -> None:
        """Resets all totals and begins to measure memory too.

        Args:
            device: the rank's device.
            exact: synchronize a CUDA device at the begin and end of each phase, so that its seconds count in the right
                phase. By default they count in the phase in which the host waits for them, at no cost.
        """
        self._totals, self._meter = PhaseTotals(), _Meter(device)
        self._wait = functools.partial(devices.synchronize, device) if exact else None
        self._last_change = self._now()

    def stop(self) -> PhaseTotals:
        """Ends the measurement and returns the totals since `start`."""
        self._charge(OTHER, self._now())
        totals, self._totals, self._meter, self._wait = self._totals, PhaseTotals(), None, None
        return totals

    def enter(self, name: str) -> None:
        """Begins a phase."""
        now = self._now()
        if not self._open:
            self._charge(OTHER, now)
        path = f"{self._open[-1].path}/{name}" if self._open else name
        trace = self.trace(path) if self.trace else None
        if trace is not None:
            trace.__enter__()
        self._open.append(_OpenPhase(path, now, trace))

    def leave(self) -> float:
        """Ends the innermost phase; returns its seconds."""
        path, begin, trace = self._open.pop()
        now = self._now()
        if trace is not None:
            trace.__exit__(None, None, None)
        if self._open:
            self._totals.seconds[path] += now - begin
        else:
            self._charge(path, now)
        return now - begin

    def switch_to(self, name: str) -> None:
        """Ends the innermost phase and begins another one at the same level; does nothing to an outermost phase.

        For work that no context can surround, such as a part of a backward pass.
        """
        if len(self._open) > 1:
            path, begin, trace = self._open[-1]
            now = self._now()
            self._totals.seconds[path] += now - begin
            self._open[-1] = _OpenPhase(f"{self._open[-2].path}/{name}", now, trace)

    @property
    def outermost(self) -> bool:
        """Whether the clock is started and no phase is open."""
        return self._meter is not None and not self._open

    def _now(self) -> float:
        if self._wait is not None:
            self._wait()
        return time.perf_counter()

    def _charge(self, path: str, now: float) -> None:
        """Adds the time and memory since the last change of the outermost phase to ``path``."""
        self._totals.seconds[path] += now - self._last_change
        self._last_change = now
        if self._meter is not None:
            self._meter.read(self._totals.memory[path])


clock = Clock()


class Phase(ContextDecorator):
    """A named part of the work, as a context manager or a decorator; it nests in the phase that surrounds it.

    Only the training thread may enter phases.

    Args:
        name: one component of the path.
        shown: whether it has a progress bar; other long phases are logged at level INFO when they end.
    """

    def __init__(self, name: str, shown: bool = False) -> None:
        self.name, self.shown = name, shown

    def __enter__(self) -> None:
        clock.enter(self.name)

    def __exit__(self, *error: Any) -> None:
        seconds = clock.leave()
        if clock.outermost:
            long = seconds > _LONG and not self.shown
            logger.log(logging.INFO if long else logging.DEBUG, "%s: %.3f s", self.name, seconds)


def process_memory(process: int | str = "self") -> dict[str, int]:
    """Reads the memory counters of a process from /proc.

    Args:
        process: its id; this process by default.

    Returns:
        Bytes by the kernel's names, e.g. ``VmHWM``, the peak of resident memory; empty for a process that has ended.
    """
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    sizes = (line.removesuffix(" kB").split(":") for line in lines if line.endswith(" kB"))
    return {name: int(size) << 10 for name, size in sizes}


class _Meter:
    """Reads the maximal memory of the process since the last reading.

    The kernel keeps the peak, so no thread has to sample it. It keeps one peak for all resident pages; mapped files are
    therefore reported separately.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._can_reset = device, True
        self.read(PhaseMemory())

    def read(self, maxima: PhaseMemory) -> None:
        """Raises ``maxima`` to what was seen since the last reading, and resets the peaks."""
        memory = process_memory()
        resident, anonymous, files, shared, peak = (
            memory[name] for name in ("VmRSS", "RssAnon", "RssFile", "RssShmem", "VmHWM")
        )
        # A peak that cannot be reset may belong to an earlier phase.
        maxima.peak = max(maxima.peak, peak if self._can_reset else resident)
        maxima.own, maxima.files = max(maxima.own, anonymous + shared), max(maxima.files, files)
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        except OSError:
            self._can_reset = False
        maxima.device = max(maxima.device, devices.peak_bytes(self._device))
        devices.reset_peak_bytes(self._device)
