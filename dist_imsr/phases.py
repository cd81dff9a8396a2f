"""Where a process's time goes and what memory it takes, by the names of phases.

Any module marks its part of the work with a `Phase`. What is marked is always counted; a run reads the `clock` span by
span.
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
_LONG = 5.0  # seconds from which on a phase that shows nothing is told of


@dataclass
class Memory:
    """The most bytes that a phase was seen with.

    Args:
        peak: resident at any time in it, what is mapped of files included: the kernel's own high-water mark.
        own: resident when it ended, without what is mapped of files: that is page cache, which the kernel takes back.
        files: resident when it ended, of mapped files: libraries and prepared data.
        device: allocated on the CUDA device at any time in it.
    """

    peak: int = 0
    own: int = 0
    files: int = 0
    device: int = 0


@dataclass
class Account:
    """What phases took.

    Args:
        seconds: by path; ``training/lookup`` is a part of ``training``. The outermost ones, with ``other`` for what no
            phase names, add up to the time between `Clock.start` and `Clock.stop`.
        memory: of the outermost ones.
    """

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    memory: dict[str, Memory] = field(default_factory=lambda: defaultdict(Memory))


class _Entered(NamedTuple):
    path: str
    begin: float
    mark: AbstractContextManager[Any] | None


class Clock:
    """Counts the phases of one thread; a process has one, `clock`."""

    def __init__(self) -> None:
        self.mark: Callable[[str], AbstractContextManager[Any]] | None = None
        """Makes what surrounds each phase, where somebody traces it."""
        self._account = Account()
        self._entered = list[_Entered]()
        self._turned = 0.0  # when the outermost phase changed last
        self._meter: _Meter | None = None
        self._wait: Callable[[], None] | None = None

    def start(self, device: torch.device, exact: bool = False) -> None:
        """Opens an account, with memory.

        Args:
            device: where the work is done.
            exact: wait for a CUDA device wherever a phase begins or ends, so that each gets its own seconds. Else
                those of the device count where the host waits for it, and nothing is slowed down.
        """
        self._account, self._meter = Account(), _Meter(device)
        self._wait = functools.partial(devices.synchronize, device) if exact else None
        self._turned = self._now()

    def stop(self) -> Account:
        """Closes the account.

        Returns:
            What phases took since `start`.
        """
        self._turn(OTHER, self._now())
        account, self._account, self._meter, self._wait = self._account, Account(), None, None
        return account

    def enter(self, name: str) -> None:
        """Begins a phase."""
        now = self._now()
        if not self._entered:
            self._turn(OTHER, now)
        path = f"{self._entered[-1].path}/{name}" if self._entered else name
        mark = self.mark(path) if self.mark else None
        if mark is not None:
            mark.__enter__()
        self._entered.append(_Entered(path, now, mark))

    def leave(self) -> float:
        """Ends the phase that was entered last; returns the seconds that it took."""
        path, begin, mark = self._entered.pop()
        now = self._now()
        if mark is not None:
            mark.__exit__(None, None, None)
        if self._entered:
            self._account.seconds[path] += now - begin
        else:
            self._turn(path, now)
        return now - begin

    def turn(self, name: str) -> None:
        """From here on the phase at hand goes by another name, unless it is an outermost one.

        Args:
            name: for what cannot be entered and left in one place, such as a part of a backward pass.
        """
        if len(self._entered) > 1:
            path, begin, mark = self._entered[-1]
            now = self._now()
            self._account.seconds[path] += now - begin
            self._entered[-1] = _Entered(f"{self._entered[-2].path}/{name}", now, mark)

    @property
    def outermost(self) -> bool:
        """Whether no phase is at hand, while an account is open."""
        return self._meter is not None and not self._entered

    def _now(self) -> float:
        if self._wait is not None:
            self._wait()
        return time.perf_counter()

    def _turn(self, path: str, now: float) -> None:
        """Time and memory since the outermost phase changed last were those of ``path``."""
        self._account.seconds[path] += now - self._turned
        self._turned = now
        if self._meter is not None:
            self._meter.read(self._account.memory[path])


clock = Clock()


class Phase(ContextDecorator):
    """A stretch of work, as a context or around a function; inside another phase it is a part of that one.

    Only the thread that trains enters phases.

    Args:
        name: of the phase.
        shown: whether it shows its progress; the end of one that does not is told of where it took long.
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


def memory_of(process: int | str = "self") -> dict[str, int]:
    """What the kernel tells of a process's memory.

    Args:
        process: its number; this one by default.

    Returns:
        Bytes by the kernel's names, e.g. ``VmHWM``, the most that was ever resident; none of one that has ended.
    """
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    sizes = (line.removesuffix(" kB").split(":") for line in lines if line.endswith(" kB"))
    return {name: int(size) << 10 for name, size in sizes}


class _Meter:
    """Reads the memory that the process was seen with since the last reading.

    The kernel keeps the peak, so that nothing between two readings is missed and no thread has to look. It keeps that
    of all resident pages alone; therefore those of files are told beside it.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._resets = device, True
        self.read(Memory())

    def read(self, into: Memory) -> None:
        """Raises what was seen before, and begins anew."""
        told = memory_of()
        resident, anonymous, files, shared, peak = (
            told[name] for name in ("VmRSS", "RssAnon", "RssFile", "RssShmem", "VmHWM")
        )
        # Where the mark cannot be reset it would be that of phases before.
        into.peak = max(into.peak, peak if self._resets else resident)
        into.own, into.files = max(into.own, anonymous + shared), max(into.files, files)
        try:
            with open("/proc/self/clear_refs", "w") as mark:
                mark.write("5")
        except OSError:
            self._resets = False
        into.device = max(into.device, devices.peak_bytes(self._device))
        devices.reset_peak_bytes(self._device)
