import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_imsr.launcher import rank_info
from dist_imsr.processes import RankGroup, failure_reason, wait_for_any

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (
            1,
            "12:00:00 span 0\ntrain: the loss is not finite\ntrain: rank 1: another rank ended; its\n",
            "the loss is not finite (status 1)",
        ),
        (1, "Traceback\nRuntimeError: odd\n\n", "RuntimeError: odd (status 1)"),
        (1, "", "its log is empty (status 1)"),
        (-9, "span 0, epoch 1\n", "killed by SIGKILL (out of memory?); its last line: span 0, epoch 1"),
        (-15, "x", "killed by SIGTERM; its last line: x"),
    ],
)
def test_the_reason_is_the_commands_own_message(status, message, reason):
    assert failure_reason("train", status, message) == reason


def _print_rank(words, statuses):
    info = rank_info()
    print(*words, f"rank {info.rank} of {info.world_size}, threads {os.environ.get('OMP_NUM_THREADS')}", flush=True)
    return statuses[info.rank]


def _sleep(folder):
    (folder / f"process={os.getpid()}").touch()
    time.sleep(60)
    return 0


def start_sleeping_ranks(folder):
    RankGroup(_sleep, (folder,), 2, folder / "log", orphaned=signal.SIGKILL)
    time.sleep(60)


def _running(folder):
    """The processes of `_sleep` that have not ended."""
    processes = [Path("/proc", path.name.removeprefix("process=")) for path in folder.glob("process=*")]
    return [one for one in processes if one.exists() and "State:\tZ" not in (one / "status").read_text()]


def _wait(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _ended(group):
    while not group.ended():
        wait_for_any([group], 10)
    return group


def test_ranks_write_to_the_log_and_the_first_failure_is_kept(tmp_path):
    log = tmp_path / "log"
    log.write_text("earlier: rank 7\n")
    group = _ended(RankGroup(_print_rank, (["train:"], [0, 0]), 2, log, threads=3))
    assert group.failure is None
    lines = ["train: rank 0 of 2, threads 3", "train: rank 1 of 2, threads 3"]
    assert sorted(log.read_text().splitlines()) == ["earlier: rank 7", *lines]
    group = _ended(RankGroup(_print_rank, (["test:"], [4]), 1, log))
    assert group.failure == 4
    inherited = os.environ.get("OMP_NUM_THREADS")
    assert group.failure_reason("test") == f"rank 0 of 1, threads {inherited} (status 4)"
    assert group.failure_reason("train").startswith("test: rank 0")  # its own text alone


def test_stopped_ranks(tmp_path):
    group = RankGroup(_sleep, (tmp_path,), 2, tmp_path / "log")
    _wait(lambda: len(_running(tmp_path)) == 2)
    group.stop()
    assert _ended(group).failure == -signal.SIGTERM
    assert group.seconds < 60


def test_ranks_end_with_the_process_that_started_them(tmp_path):
    code = f"from tests.test_processes import start_sleeping_ranks as f, Path; f(Path({str(tmp_path)!r}))"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    _wait(lambda: len(_running(tmp_path)) == 2)
    parent.kill()
    parent.wait()
    _wait(lambda: not _running(tmp_path), seconds=10)
