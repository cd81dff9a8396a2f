"""Runs several groups of ranks at once on this machine, and survives their failures."""

import logging
import time
from collections import Counter
from collections.abc import Sequence

from dist_imsr.baselines.config import BaselinesConfig, run_baselines
from dist_imsr.comparison.jobs import Job, State
from dist_imsr.config import import_modules
from dist_imsr.distributed.command import run
from dist_imsr.distributed.signals import StopSignals
from dist_imsr.processes import RankGroup, wait_for_any
from dist_imsr.training.config import TrainConfig

logger = logging.getLogger(__name__)

_LOG = "log.txt"


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
        jobs = list(dict.fromkeys(jobs))
        pending = [job for job in jobs if not job.done]
        needed = dict.fromkeys(job.needs for job in pending if job.needs is not None and not job.needs.done)
        waiting: list[Job] = [*(job for job in needed if job is not None), *pending]
        if len(jobs) > len(pending):
            logger.info("%d of %d %s were finished before", len(jobs) - len(pending), len(jobs), kind)
        self._kind, self._total, self._left, self._began = kind, len(waiting), set(waiting), time.monotonic()
        running = dict[RankGroup, Job]()
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
                    job.begin()
                    device, log = next(iter(Counter(self._devices) - busy)), job.folder / _LOG
                    command, ranks = (_measure, 1) if job.is_baseline else (_train, self.ranks)
                    group = RankGroup(command, (job.config,), ranks, log, device=device, threads=1)
                    running[group] = job
            wait_for_any(running, 0.5)
            for group in [group for group in running if group.ended()]:
                job = running.pop(group)
                if not group.failure:
                    self._end(job, State("done", seconds=group.seconds))
                elif not stopping:  # else it resumes from its checkpoint another time
                    reason = group.failure_reason("baselines" if job.is_baseline else "train")
                    self._end(job, State("failed", reason, group.seconds))
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


def _train(config: TrainConfig) -> int:
    """The command of a rank that trains."""
    from dist_imsr.training.run import train  # loads the libraries, which this process does without

    import_modules(config.imports)
    return train(config)


def _measure(config: BaselinesConfig) -> int:
    """The command of the rank that tests a baseline."""

    def work() -> None:
        run_baselines(config)

    return run("baselines", work, "interrupted")


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
