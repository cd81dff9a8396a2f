"""Runs several groups of ranks at once on this machine, and survives whatever becomes of them."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path

import torch

from dist_imsr import devices
from dist_imsr.comparison.jobs import Job, State
from dist_imsr.distributed.signals import StopSignals
from dist_imsr.launcher import RankInfo
from dist_imsr.processes import free_port, new_process
from dist_imsr.training.config import TrainConfig

logger = logging.getLogger(__name__)

_PATIENCE = 30.0  # seconds that the ranks of a group have to notice that one of them is gone
_LOG = "log.txt"


class Group:
    """The ranks of one run.

    Args:
        job: the run.
        ranks: how many.
        device: the first rank's, of those of this machine; the others have the next.
    """

    def __init__(self, job: Job, ranks: int, device: int) -> None:
        job.begin()
        self.job, self.device, self.began = job, device, time.monotonic()
        log = job.folder / _LOG
        self._said_before = log.stat().st_size if log.exists() else 0
        self._failure: int | None = None  # the exit status of the first rank that failed
        self._deadline = float("inf")
        port = free_port() if ranks > 1 else 0  # a run alone takes any
        self.processes = []
        for rank in range(ranks):
            environment = RankInfo(rank, ranks, device + rank, ranks, port=port).environment
            process = new_process(_rank, (job.config, environment, log), cuda=devices.device_count() > 0)
            process.start()
            self.processes.append(process)

    def stop(self) -> None:
        """Asks the ranks to end in order."""
        for process in self.processes:
            process.terminate()

    def ended(self) -> bool:
        """Looks after the ranks; those that one of them left behind are killed after a while.

        Returns:
            Whether all have ended.
        """
        statuses = [process.exitcode for process in self.processes]
        if self._failure is None:
            self._failure = next((status for status in statuses if status), None)
            if self._failure is not None:
                self._deadline = time.monotonic() + _PATIENCE
        if time.monotonic() > self._deadline:
            for process in self.processes:
                process.kill()
        return None not in statuses

    def state(self) -> State:
        """How the run ended.

        Returns:
            ``done``, or ``failed`` with the reason.
        """
        seconds = time.monotonic() - self.began
        if not self._failure:
            return State("done", seconds=seconds)
        log = self.job.folder / _LOG
        said = log.read_bytes()[self._said_before :].decode(errors="replace") if log.exists() else ""
        return State("failed", reason_of(self._failure, said), seconds)


def reason_of(status: int, said: str) -> str:
    """Why a run failed, in one line.

    Args:
        status: of its first rank that failed; below 0 for a signal.
        said: its log.

    Returns:
        The command's own word where it had one, else the last line.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    own = [line.removeprefix("train: ") for line in lines if line.startswith("train: ") and "another rank" not in line]
    word = (own or lines or ["it said nothing"])[-1][:400]
    if status < 0:
        memory = " (out of memory?)" if -status == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-status).name}{memory}; its last line: {word}"
    return f"{word} (status {status})"


class Runner:
    """Works through runs, so many at once as the cores allow.

    Args:
        cores: processes at once.
        ranks: processes of a run.
        signals: tells whether somebody asked to stop.
        devices: how many accelerators this machine has, whole runs taking turns on them; 0 for none.
    """

    def __init__(self, cores: int, ranks: int, signals: StopSignals, devices: int = 0) -> None:
        self.slots, self.ranks, self.signals = cores // ranks, ranks, signals
        self._places = [slot % max(devices // ranks, 1) * ranks for slot in range(self.slots)]
        self._kind, self._total, self._left, self._began = "", 0, set[Job](), 0.0

    def run(self, jobs: Sequence[Job], kind: str) -> bool:
        """Runs what has not ended well before, and the pre-trainings that this needs.

        Args:
            jobs: the runs, in the order in which they are begun.
            kind: what they are called.

        Returns:
            Whether all have ended, well or not; False where somebody asked to stop.
        """
        pending = [job for job in jobs if not job.done]
        needed = dict.fromkeys(job.needs for job in pending if job.needs is not None and not job.needs.done)
        waiting: list[Job] = [*(job for job in needed if job is not None), *pending]
        if len(jobs) > len(pending):
            logger.info("%d of %d %s were finished before", len(jobs) - len(pending), len(jobs), kind)
        self._kind, self._total, self._left, self._began = kind, len(waiting), set(waiting), time.monotonic()
        running: list[Group] = []
        stopping = False
        while running or (waiting and not stopping):
            if self.signals.status and not stopping:
                stopping = True
                for group in running:
                    group.stop()
            while not stopping and len(running) < self.slots and (job := self._next(waiting)) is not None:
                if job.needs is not None and not job.needs.done:
                    job.begin()
                    self._end(job, State("failed", f"its pre-training failed: {job.needs.state.reason}"))
                else:
                    taken = Counter(group.device for group in running)
                    running.append(Group(job, self.ranks, next(iter(Counter(self._places) - taken))))
            wait([process.sentinel for group in running for process in group.processes if process.is_alive()], 0.5)
            for group in [group for group in running if group.ended()]:
                running.remove(group)
                state = group.state()
                if state.status == "done" or not stopping:  # else it goes on from its checkpoint another time
                    self._end(group.job, state)
        return not stopping

    def _next(self, waiting: list[Job]) -> Job | None:
        """Takes the first that waits for nothing else."""
        for place, job in enumerate(waiting):
            if job.needs not in self._left:
                return waiting.pop(place)
        return None

    def _end(self, job: Job, state: State) -> None:
        job.end(state)
        self._left.discard(job)
        ended, spent = self._total - len(self._left), time.monotonic() - self._began
        logger.info(
            "[%s %d/%d] %s: %s in %.1f s; about %s left",
            *(self._kind, ended, self._total, job.name, f"failed: {state.reason}," if state.reason else state.status),
            *(state.seconds, _span(spent / ended * len(self._left))),
        )


def _rank(config: TrainConfig, environment: dict[str, str], log: Path) -> None:
    """One rank's process."""
    os.setsid()  # Ctrl-C reaches the comparison alone, which ends its runs in order
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    os.environ.update(environment, OMP_NUM_THREADS="1")
    threading.Thread(target=_end_with_parent, daemon=True).start()

    from dist_imsr.training.run import train

    torch.set_num_threads(1)
    sys.exit(train(config))


def _end_with_parent() -> None:
    """Without its comparison, a rank ends in order, and leaves a checkpoint."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _span(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
