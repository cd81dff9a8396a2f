"""Real jobs on a real cluster of two nodes, which this machine plays (tests/slurm.py)."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from dist_imsr.benchmarks.ranks import LocalRanks
from dist_imsr.config import parse
from dist_imsr.training.config import TrainConfig
from tests.runs import run, timeless
from tests.slurm import NODES, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
_SCRIPTS = ROOT / "launch" / "slurm"
_DRIFT = [
    *("--source=drift", "--spans=3", "--min_interactions=1", "--buckets=8"),
    *("--drift.users=300", "--drift.items=600", "--drift.clusters=20", "--drift.interactions=[6000,3000]"),
]
_TRAIN = [
    *("--strategy.name=imsr", "--model.dim=16", "--batch.negatives=50", "--batch.size=32"),
    *("--training.epochs=3", "--training.incremental_epochs=8", "--training.patience=0"),
    "--checkpoint.every_steps=1",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


class Jobs:
    """Submits the project's scripts as a user does."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        self._python = folder / "activate"
        self._python.write_text(f"PATH={Path(sys.executable).parent}:$PATH\n")

    def submit(self, script, *arguments, name, options=(), **environment):
        place = {"DIST_IMSR_HOME": ROOT, "DIST_IMSR_ENVIRONMENT": self._python, "OMP_NUM_THREADS": 1}
        return self.cluster.submit(
            *(f"--job-name={name}", f"--output={self.log(name)}", *options),
            *(_SCRIPTS / script, *arguments),
            **place | environment,
        )

    def log(self, name):
        return self.folder / f"{name}.log"

    def text(self, name):
        return self.log(name).read_text() if self.log(name).exists() else ""

    def ended(self, job, name, seconds=120):
        """Waits for a job's end; returns its state."""
        going = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")
        self.cluster.until(
            lambda: self.cluster.told(job)["JobState"] not in going, seconds, say=lambda: self.text(name)
        )
        return self.cluster.told(job)["JobState"]


@pytest.fixture(scope="module")
def jobs(cluster, tmp_path_factory):
    return Jobs(cluster, tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="module")
def data(jobs):
    """Drift, prepared by a job."""
    folder = jobs.folder / "drift"
    job = jobs.submit("prepare.sbatch", *_DRIFT, f"--output={folder}", name="prepare")
    assert jobs.ended(job, "prepare") == "COMPLETED", jobs.text("prepare")
    return folder


@pytest.fixture(scope="module")
def local(data, tmp_path_factory):
    """What two ranks of this machine measure, that no cluster knows of."""
    folder = tmp_path_factory.mktemp("local") / "run"
    config = parse(TrainConfig, [*_TRAIN, f"--data.path={data}", f"--run_dir={folder}"])
    with LocalRanks(2, seconds=120) as ranks:
        ranks.call(run, config)
    return folder


def _lines(run_dir):
    return timeless([json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()])


def test_a_signal_while_ranks_start_and_a_task_of_an_array(cluster, jobs, data, tmp_path):
    """The last task of an array has the number of the whole of it; its ranks hear no signal before Python is up."""
    name, run_dir = "early", tmp_path / "run"
    arguments = *_TRAIN, f"--data.path={data}", "--training.incremental_epochs=100000"
    job = jobs.submit("train.sbatch", *arguments, options=["--array=0-0"], name=name, LAUNCHER="srun", RUN_DIR=run_dir)
    task = f"{job}_0"
    cluster.until(lambda: cluster.told(task)["JobState"] == "RUNNING")
    time.sleep(1)
    cluster.call("scancel", "--signal=USR1", "--batch", task)
    cluster.until(lambda: cluster.told(task)["Restarts"] == "1", say=lambda: jobs.text(name))
    cluster.call("scancel", job)


def _trained(jobs, cluster, name, run_dir):
    """Waits until a run has left a checkpoint behind its pre-training."""
    cluster.until(lambda: list((run_dir / "checkpoints").glob("span=01-*")), say=lambda: jobs.text(name))


@pytest.mark.parametrize(
    ("launcher", "signal"),
    [
        ("deepspeed", ["--signal=TERM"]),  # to the ranks and their launcher
        ("torchrun", ["--signal=USR1", "--batch"]),  # to the script, as when the time is nearly over
        ("srun", ["--signal=TERM", "--full"]),  # to everything at once
    ],
)
def test_two_nodes_that_are_told_to_stop_go_on_and_measure_what_two_local_ranks_do(
    cluster, jobs, data, local, tmp_path, launcher, signal
):
    name, run_dir = f"told-{launcher}", tmp_path / "run"
    arguments = *_TRAIN, f"--data.path={data}"
    where = {"LAUNCHER": launcher, "RUN_DIR": run_dir}
    job = jobs.submit("train.sbatch", *arguments, options=["--nodes=2"], name=name, **where)
    _trained(jobs, cluster, name, run_dir)
    cluster.call("scancel", *signal, job)
    cluster.until(lambda: cluster.told(job)["Restarts"] == "1", say=lambda: jobs.text(name))
    assert jobs.ended(job, name) == "COMPLETED", jobs.text(name)
    assert jobs.text(name).count("2 rank(s), 1 a machine") == 2
    assert "going on from" in jobs.text(name)
    assert _lines(run_dir) == _lines(local)
    assert sorted(path.name for path in (run_dir / "logs").iterdir()) == ["rank=0000.log", "rank=0001.log"]


def test_a_node_that_goes_down_leaves_the_job_to_the_other(cluster, jobs, data, local, tmp_path):
    name, run_dir = "down", tmp_path / "run"
    arguments = *_TRAIN, f"--data.path={data}"
    job = jobs.submit("train.sbatch", *arguments, options=["--nodes=2"], name=name, RUN_DIR=run_dir)
    _trained(jobs, cluster, name, run_dir)
    cluster.call("scontrol", "update", f"nodename={NODES[1]}", "state=down", "reason=test")
    try:
        cluster.until(lambda: cluster.told(job)["Restarts"] == "1", say=lambda: jobs.text(name))
        cluster.call("scontrol", "update", f"jobid={job}", "numnodes=1", "numtasks=1")
        assert jobs.ended(job, name) == "COMPLETED", jobs.text(name)
    finally:
        cluster.call("scontrol", "update", f"nodename={NODES[1]}", "state=resume", check=False)
    assert "1 rank(s), 1 a machine" in jobs.text(name)
    assert "going on from" in jobs.text(name)
    for line, wanted in zip(_lines(run_dir), _lines(local), strict=True):
        for key in line.keys() - {"store_bytes"}:  # counts one more offset a rank
            number = isinstance(wanted[key], float)
            assert line[key] == (pytest.approx(wanted[key], rel=1e-3, abs=1e-4) if number else wanted[key]), key


def test_the_end_of_its_time_puts_a_job_back_and_cancelling_does_not(cluster, jobs, data, tmp_path):
    name, run_dir = "limited", tmp_path / "run"
    arguments = *_TRAIN, f"--data.path={data}", "--training.incremental_epochs=100000"
    limit = ["--time=1", "--signal=B:USR1@40"]
    job = jobs.submit("train.sbatch", *arguments, options=limit, name=name, RUN_DIR=run_dir)
    cluster.until(lambda: "going on from" in jobs.text(name), seconds=120, say=lambda: jobs.text(name))
    assert cluster.told(job)["Restarts"] == "1"
    cluster.call("scancel", job)
    assert jobs.ended(job, name) == "CANCELLED"
    assert cluster.told(job)["Restarts"] == "1"


@pytest.mark.parametrize(
    ("arguments", "environment", "word"),
    [
        ([], {"LAUNCHER": "mpirun"}, "LAUNCHER: 'mpirun' is none of deepspeed, torchrun, srun"),
        ([], {"DIST_IMSR_ENVIRONMENT": "nowhere"}, "nowhere cannot be read in"),
        (["--data.path=nowhere"], {}, "train: data.path: nowhere holds no dataset.json"),
    ],
)
def test_what_cannot_work_ends_at_once(jobs, tmp_path, arguments, environment, word):
    name = f"refused-{abs(hash(word))}"
    where = {"LAUNCHER": "srun", "RUN_DIR": tmp_path / "run"} | environment
    job = jobs.submit("train.sbatch", *arguments, name=name, **where)
    assert jobs.ended(job, name) == "FAILED"
    assert jobs.cluster.told(job)["ExitCode"] == "2:0"
    assert word in jobs.text(name)
    assert not os.path.exists(tmp_path / "run" / "metrics.jsonl")
