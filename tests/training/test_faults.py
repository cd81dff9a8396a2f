import contextlib
import fcntl
import json
import os
import random
import signal
import subprocess
import time
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_imsr.distributed.command import REQUEUE
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.training.checkpoint import CheckpointConfig, newest_first
from tests.commands import start_ranks
from tests.faults import run_counted, run_killed_once, run_with_kills, steps_done
from tests.prepared import drawn_history, write_dataset
from tests.ranks import ranks_on
from tests.runs import timeless
from tests.training.test_checkpoint import _config

_SMALL = [
    *("--model.dim", "8", "--batch.size", "16", "--batch.negatives", "20", "--eval.top", "[5]"),
    *("--strategy.name", "imsr", "--training.epochs", "2", "--training.incremental_epochs", "2"),
]
_ENDLESS = ["--training.epochs", "100000", "--training.patience", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), drawn_history(users=60, items=80, spans=4, longest=12))


def test_killed_anywhere_it_ends_with_the_same_bits(folder, tmp_path):
    config = _config(folder, tmp_path / "whole", checkpoint=CheckpointConfig(every_steps=3))
    with ranks_on(2) as ranks:
        counted = ranks.call(run_counted, config)
    kills, wanted = 6, [left for left, _ in counted]
    points, again = min(passed.total() for _, passed in counted), replace(config, run_dir=tmp_path / "killed")
    assert run_with_kills(again, kills, random.Random(1), points, steps_done(config)) == wanted
    lines = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert timeless(lines) == wanted[0][0]


_SAVING = {"write": (1, 0.5), "fsync": (0, 0.1), "rename": (0, 0.6), "rmtree": (0, 0.4)}


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory):
    """The configuration of a run, and the results of `run_counted`."""
    config = _config(
        folder, tmp_path_factory.mktemp("saved") / "run", checkpoint=CheckpointConfig(every_steps=3, keep_last=1)
    )
    with ranks_on(2) as ranks:
        return config, ranks.call(run_counted, config)


@pytest.mark.parametrize("point", _SAVING)
def test_killed_while_it_saves(saved, tmp_path, point):
    """An interrupted save leaves the checkpoint before it intact."""
    (config, counted), (rank, share) = saved, _SAVING[point]
    passed = counted[rank][1][point]
    assert passed > 5
    kill = rank, max(2, int(passed * share))
    left = run_killed_once(replace(config, run_dir=tmp_path / "run"), kill, [point])
    assert left == [one for one, _ in counted]


@pytest.fixture
def ranks(tmp_path_factory):
    """Starts ranks without a launcher, so that only they end each other; the test continues meanwhile."""
    started, folder = [], tmp_path_factory.mktemp("ranks")

    def start(*arguments, **options):
        started.append(start_ranks(folder, *arguments, **options))
        return started[-1]

    yield start
    for process in [process for world in started for process in world]:
        if process.poll() is None:
            process.kill()
            process.wait(timeout=60)


def _wait_until(condition, processes, seconds=60):
    """Waits for a condition, while all processes run."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was never true"
        assert all(process.poll() is None for process in processes), processes[0].communicate()[1]
        time.sleep(0.05)


def _outcome(processes, seconds=40):
    """Exit statuses and stderr, by rank."""
    errors = [process.communicate(timeout=seconds)[1] for process in processes]
    return [process.returncode for process in processes], errors


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    statuses, errors = _outcome(start_ranks(run_dir.parent, "--data.path", folder, "--run_dir", run_dir, *_SMALL), 90)
    assert statuses == [0, 0], errors
    return run_dir


@pytest.mark.parametrize(
    ("number", "signalled", "status"),
    [(signal.SIGUSR1, [1], REQUEUE), (signal.SIGINT, [0, 1], 130)],  # SIGTERM: below
)
def test_a_signal_stops_after_the_step_and_the_same_command_resumes(
    ranks, folder, tmp_path, undisturbed, number, signalled, status
):
    arguments = ["--data.path", folder, "--run_dir", tmp_path / "run", *_SMALL]
    started = ranks(*arguments, "--checkpoint.every_steps", 1)
    _wait_until(lambda: list((tmp_path / "run" / "checkpoints").glob("span=01-*")), started)
    for rank in signalled:
        started[rank].send_signal(number)
    statuses, errors = _outcome(started)
    assert statuses == [status] * 2, errors
    assert "Traceback" not in "".join(errors)
    newest = newest_first(tmp_path / "run" / "checkpoints")[0]
    assert f"train: stopped; the same command resumes from {newest}\n" in errors[0]
    assert "train: " not in errors[1]
    statuses, errors = _outcome(ranks(*arguments), 90)
    assert statuses == [0, 0], errors
    assert f"resuming from {newest}" in errors[0]
    assert _lines(tmp_path / "run") == _lines(undisturbed)
    assert _files(tmp_path / "run") == _files(undisturbed)
    assert _losses(tmp_path / "run") == _losses(undisturbed)


def _losses(run_dir):
    """The losses that TensorBoard shows."""
    events = EventAccumulator(str(run_dir / "events"), {"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars("train/loss")]


def _lines(run_dir):
    return timeless([json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()])


def _files(run_dir):
    """The checksums of the last checkpoint's files."""
    return json.loads((newest_first(run_dir / "checkpoints")[0] / "manifest.json").read_text())["files"]


def test_a_second_ctrl_c_stops_at_once_even_where_a_rank_hangs(ranks, folder, tmp_path):
    started = ranks("--data.path", folder, "--run_dir", tmp_path / "run", *_SMALL, *_ENDLESS)
    _wait_until(lambda: list((tmp_path / "run" / "checkpoints").glob("span=*")), started)
    started[1].send_signal(signal.SIGSTOP)
    time.sleep(0.5)
    started[0].send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert started[0].poll() is None
    begin = time.monotonic()
    started[0].send_signal(signal.SIGINT)
    assert started[0].wait(timeout=20) == 130
    assert time.monotonic() - begin < 5
    assert "press Ctrl-C again" in started[0].communicate()[1]
    started[1].kill()
    started[1].communicate()


def test_a_rank_that_hangs_ends_the_others_in_bounded_time(ranks, folder, tmp_path):
    arguments = ["--data.path", folder, "--run_dir", tmp_path / "run", *_SMALL, *_ENDLESS, "--timeout_seconds", 5]
    started = ranks(*arguments, forked=False)
    _wait_until(lambda: list((tmp_path / "run" / "checkpoints").glob("span=*")), started)
    started[1].send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    assert started[0].wait(timeout=60) == 1
    assert 3 < time.monotonic() - begin < 30
    assert (
        "rank 0: another rank did not answer in time (timeout_seconds, step_timeout_seconds)"
        in started[0].communicate()[1]
    )
    started[1].kill()
    started[1].communicate()


def _raise_on_rank_1():
    real, steps = Recommender.train_step, []

    def train_step(self, *arguments, **keywords):
        steps.append(0)
        if len(steps) == 5 and self.topology.rank == 1:
            raise KeyError("a fault of rank 1")
        return real(self, *arguments, **keywords)

    Recommender.train_step = train_step


def test_a_rank_that_raises_ends_the_others(ranks, folder, tmp_path):
    arguments = ["--data.path", folder, "--run_dir", tmp_path / "run", *_SMALL, *_ENDLESS]
    statuses, errors = _outcome(ranks(*arguments, before=_raise_on_rank_1), 60)
    assert statuses == [1, 1]
    assert "Traceback" in errors[1]
    assert "a fault of rank 1" in errors[1]
    assert errors[0].splitlines()[-1] == "train: rank 0: another rank ended; its message says why"


def test_two_processes_do_not_share_a_folder(ranks, folder, tmp_path):
    arguments = ["--data.path", folder, "--run_dir", tmp_path / "run", *_SMALL, *_ENDLESS]
    started = ranks(*arguments, world_size=1)
    _wait_until(lambda: (tmp_path / "run" / "config.yaml").exists(), started)
    statuses, errors = _outcome(ranks(*arguments, world_size=1))
    assert statuses == [2]
    assert "another process is writing to" in errors[0]
    started[0].send_signal(signal.SIGTERM)
    assert _outcome(started)[0] == [REQUEUE]


def test_another_run_is_refused_key_by_key(ranks, folder, tmp_path, undisturbed):
    arguments = ["--data.path", folder, "--run_dir", undisturbed, *_SMALL]
    before = (undisturbed / "config.yaml").read_bytes(), (undisturbed / "metrics.jsonl").read_bytes()
    statuses, errors = _outcome(ranks(*arguments, "--seed", 3, "--batch.size", 8, "--batch.prefetch", 1, world_size=1))
    assert statuses == [2]
    assert "seed was 0 and is 3; batch.size was 16 and is 8. Pass" in errors[0].splitlines()[-1]
    assert before == ((undisturbed / "config.yaml").read_bytes(), (undisturbed / "metrics.jsonl").read_bytes())
    statuses, errors = _outcome(ranks(*arguments, "--resume", "never", world_size=1))
    assert statuses == [2]
    assert "holds an earlier run" in errors[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_small_disk_that_is_full(ranks, folder, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=66m", "tmpfs", disk], check=False).returncode:
        pytest.skip("this machine forbids mounts")
    try:
        arguments = ["--data.path", folder, "--run_dir", disk / "run", *_SMALL, *_ENDLESS]
        (process,) = started = ranks(*arguments, "--checkpoint.every_steps", 1, world_size=1)
        _wait_until(lambda: list((disk / "run" / "checkpoints").glob("span=*")), started)
        with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1 << 16))
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - (8 << 20))  # events and logs still find room
        _wait_until(lambda: not list((disk / "run" / "checkpoints").glob(".*")), started)
        before = newest_first(disk / "run" / "checkpoints")[0]
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        statuses, errors = _outcome(started)
        assert statuses == [REQUEUE], errors
        assert "a checkpoint was not written: rank 0:" in errors[0]
        assert "to spare" in errors[0]
        assert f"resumes from {newest_first(disk / 'run' / 'checkpoints')[0]}" in errors[0]
        assert newest_first(disk / "run" / "checkpoints")[0].name >= before.name
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_command_that_overwrites_resumes_when_the_cluster_restarts_it(ranks, folder, tmp_path, undisturbed):
    arguments = ["--data.path", folder, "--run_dir", tmp_path / "run", *_SMALL, "--overwrite", "--resume", "never"]
    started = ranks(*arguments, "--checkpoint.every_steps", 1, world_size=1)
    _wait_until(lambda: list((tmp_path / "run" / "checkpoints").glob("span=01-*")), started)
    started[0].send_signal(signal.SIGTERM)
    statuses, errors = _outcome(started)
    assert statuses == [REQUEUE]
    assert "the same command, with --resume auto and without --overwrite, resumes from" in errors[0]
    statuses, errors = _outcome(ranks(*arguments, world_size=1, restarts=1), 90)
    assert statuses == [0], errors
    assert "resuming from" in errors[0]
    (config,) = [tmp_path / "run" / "config.yaml"]
    assert "overwrite: false" in config.read_text()
    assert "resume: auto" in config.read_text()
    statuses, errors = _outcome(ranks("--config", config, world_size=1))
    assert statuses == [0]
    assert "nothing to do: " in errors[0]


def test_a_refusal_of_rank_0_ends_all(ranks, folder, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with (run_dir / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        statuses, errors = _outcome(ranks("--data.path", folder, "--run_dir", run_dir, *_SMALL))
    assert statuses == [2, 2]
    assert errors[0].splitlines()[-1].startswith(f"train: run_dir: another process is writing to {run_dir}")
    assert "train: " not in errors[1]


def test_a_signal_before_the_training_ends_at_once(ranks, folder, tmp_path):
    (process, other) = ranks("--data.path", folder, "--run_dir", tmp_path / "run", *_SMALL)
    other.send_signal(signal.SIGSTOP)  # so that rank 0 waits for it
    _wait_until(lambda: process.handles(signal.SIGUSR1), [process])
    time.sleep(1)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=10) == REQUEUE
    assert "SIGUSR1: stopped at once" in process.communicate()[1]
    other.kill()
    other.communicate()
