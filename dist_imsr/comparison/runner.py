"""Runs several groups of ranks at once on this machine, and survives their failures."""

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
from dist_imsr.config import import_modules
from dist_imsr.distributed.signals import StopSignals
from dist_imsr.launcher import RankInfo
from dist_imsr.processes import free_port, new_process
from dist_imsr.training.config import TrainConfig

logger = logging.getLogger(__name__)

_PATIENCE = 30.0  # seconds for the ranks of a group to notice that one of them is gone
_LOG = "log.txt"


class Group:
    """The ranks of one run.

    Args:
        job: the run.
        ranks: how many.
        device: index of the first rank's device on this machine; the other ranks have the next ones.
    """

    def __init__(self, job: Job, ranks: int, device: int) -> None:
        job.begin()
        self.job, self.device, self.began = job, device, time.monotonic()
        log = job.folder / _LOG
        self._log_start = log.stat().st_size if log.exists() else 0
        self._failure: int | None = None  # the exit status of the first rank that failed
        self._deadline = float("inf")
        port = free_port() if ranks > 1 else 0  # a single process takes any
        self.processes = []
        for rank in range(ranks):
            environment = RankInfo(rank, ranks, device + rank, ranks, port=port).environment
            process = new_process(_rank, (job.config, environment, log), cuda=devices.device_count() > 0)
            process.start()
            self.processes.append(process)

    def stop(self) -> None:
        """Sends SIGTERM to the ranks, which leave a checkpoint."""
        for process in self.processes:
            process.terminate()

    def ended(self) -> bool:
        """Whether all ranks have ended; some time after one has failed, the others are killed."""
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
        """The state of the run that has ended: ``done``, or ``failed`` with the reason."""
        seconds = time.monotonic() - self.began
        if not self._failure:
            return State("done", seconds=seconds)
        log = self.job.folder / _LOG
        text = log.read_bytes()[self._log_start :].decode(errors="replace") if log.exists() else ""
        return State("failed", failure_reason(self._failure, text), seconds)


def failure_reason(status: int, log: str) -> str:
    """Why a run failed, in one line: the command's own message if the log has one, else the last line.

    Args:
        status: of its first rank that failed; below 0 for a signal.
        log: its text.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    own = [line.removeprefix("train: ") for line in lines if line.startswith("train: ") and "another rank" not in line]
    message = (own or lines or ["its log is empty"])[-1][:400]
    if status < 0:
        memory = " (out of memory?)" if -status == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-status).name}{memory}; its last line: {message}"
    return f"{message} (status {status})"


class Runner:
    """Works through runs, as many at once as the cores allow.

    Args:
        cores: processes at once.
        ranks: processes of a run.
        signals: SIGTERM and Ctrl-C.
        devices: number of accelerators of this machine; each run has its own as long as there are enough.
    """

    def __init__(self, cores: int, ranks: int, signals: StopSignals, devices: int = 0) -> None:
        self.slots, self.ranks, self.signals = cores // ranks, ranks, signals
        self._devices = [slot % max(devices // ranks, 1) * ranks for slot in range(self.slots)]  # first of each run
        self._kind, self._total, self._left, self._began = "", 0, set[Job](), 0.0

    def run(self, jobs: Sequence[Job], kind: str) -> bool:
        """Runs the jobs that are not done, and the pre-trainings that they need.

        Args:
            jobs: in the order in which they start.
            kind: for log lines.

        Returns:
            Whether all have ended, done or failed; False after a signal.
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
                    busy = Counter(group.device for group in running)
                    running.append(Group(job, self.ranks, next(iter(Counter(self._devices) - busy))))
            wait([process.sentinel for group in running for process in group.processes if process.is_alive()], 0.5)
            for group in [group for group in running if group.ended()]:
                running.remove(group)
                state = group.state()
                if state.status == "done" or not stopping:  # else it resumes from its checkpoint another time
                    self._end(group.job, state)
        return not stopping

    def _next(self, waiting: list[Job]) -> Job | None:
        """Removes and returns the first job whose pre-training has ended."""
        for index, job in enumerate(waiting):
            if job.needs not in self._left:
                return waiting.pop(index)
        return None

    def _end(self, job: Job, state: State) -> None:
        job.end(state)
        self._left.discard(job)
        ended = self._total - len(self._left)
        left = (time.monotonic() - self._began) / ended * len(self._left)
        result = f"failed: {state.reason}," if state.reason else state.status
        logger.info(
            "[%s %d/%d] %s: %s in %.1f s; about %s left",
            self._kind,
            ended,
            self._total,
            job.name,
            result,
            state.seconds,
            _duration(left),
        )


def _rank(config: TrainConfig, environment: dict[str, str], log: Path) -> None:
    """One rank's process."""
    os.setsid()  # Ctrl-C reaches the comparison alone, which stops its runs
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
    os.environ.update(environment, OMP_NUM_THREADS="1")
    threading.Thread(target=_end_with_parent, daemon=True).start()

    from dist_imsr.training.run import train

    torch.set_num_threads(1)
    import_modules(config.imports)
    sys.exit(train(config))


def _end_with_parent() -> None:
    """Stops a rank whose comparison is gone; it leaves a checkpoint."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
