"""Real jobs on a real Slurm cluster of two nodes on this machine (tests/slurm.py)."""

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
    "--checkpoint.every_steps=10",
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
        variables = {"DIST_IMSR_HOME": ROOT, "DIST_IMSR_ENVIRONMENT": self._python, "OMP_NUM_THREADS": 1}
        options = [f"--job-name={name}", f"--output={self.log(name)}", *options]
        return self.cluster.submit(*options, _SCRIPTS / script, *arguments, **variables | environment)

    def log(self, name):
        return self.folder / f"{name}.log"

    def text(self, name):
        return self.log(name).read_text() if self.log(name).exists() else ""

    def final_state(self, job, name, seconds=120):
        """Waits for a job's end; returns its state."""
        active = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED")
        self.cluster.wait_until(
            lambda: self.cluster.job_info(job)["JobState"] not in active, seconds, describe=lambda: self.text(name)
        )
        return self.cluster.job_info(job)["JobState"]


@pytest.fixture(scope="module")
def jobs(cluster, tmp_path_factory):
    return Jobs(cluster, tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="module")
def data(jobs):
    """Drift, prepared by a job."""
    folder = jobs.folder / "drift"
    job = jobs.submit("prepare.sbatch", *_DRIFT, f"--output={folder}", name="prepare")
    assert jobs.final_state(job, "prepare") == "COMPLETED", jobs.text("prepare")
    return folder


@pytest.mark.spark
@pytest.mark.timeout(900)
def test_spark_on_two_nodes(jobs, tmp_path):
    log = tmp_path / "log.csv"
    rows = (f"u{row % 13},i{row * 7 % 11},{1_600_000_000 + 60 * row}\n" for row in range(500))
    log.write_text("user,item,time\n" + "".join(rows))
    fixed = ["--source=csv", f"--input={log}", "--min_interactions=1", "--buckets=3", f"--output={tmp_path / 'data'}"]
    spark = ["--spark.conf", "spark.sql.shuffle.partitions=2"]
    job = jobs.submit("prepare_spark.sbatch", *fixed, *spark, options=["--nodes=2"], name="spark")
    assert jobs.final_state(job, "spark", seconds=600) == "COMPLETED", jobs.text("spark")
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["preparations"][0]["rows_read"] == 500


@pytest.fixture(scope="module")
def local(data, tmp_path_factory):
    """A run on two ranks of this machine without the cluster."""
    folder = tmp_path_factory.mktemp("local") / "run"
    config = parse(TrainConfig, [*_TRAIN, f"--data.path={data}", f"--run_dir={folder}"])
    with LocalRanks(2, seconds=120) as ranks:
        ranks.call(run, config)
    return folder


def _lines(run_dir):
    return timeless([json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()])


def test_a_signal_while_ranks_start_requeues_a_task_of_an_array(cluster, jobs, data, tmp_path):
    """The last task of an array has the job id of the array; ranks have no handler before Python has started."""
    name, run_dir = "early", tmp_path / "run"
    arguments = *_TRAIN, f"--data.path={data}", "--training.incremental_epochs=100000"
    job = jobs.submit("train.sbatch", *arguments, options=["--array=0-0"], name=name, LAUNCHER="srun", RUN_DIR=run_dir)
    task = f"{job}_0"
    cluster.wait_until(lambda: cluster.job_info(task)["JobState"] == "RUNNING")
    time.sleep(1)
    cluster.call("scancel", "--signal=USR1", "--batch", task)
    cluster.wait_until(lambda: cluster.job_info(task)["Restarts"] == "1", describe=lambda: jobs.text(name))
    cluster.call("scancel", job)


def _trained(jobs, cluster, name, run_dir):
    """Waits until a run has written a checkpoint after its pre-training."""
    cluster.wait_until(lambda: list((run_dir / "checkpoints").glob("span=01-*")), describe=lambda: jobs.text(name))


@pytest.mark.parametrize(
    ("launcher", "signal"),
    [
        ("deepspeed", ["--signal=TERM"]),  # to the ranks and their launcher
        ("torchrun", ["--signal=USR1", "--batch"]),  # to the script, as when the time is nearly over
        ("srun", ["--signal=TERM", "--full"]),  # to everything at once
    ],
)
def test_two_signalled_nodes_resume_and_equal_two_local_ranks(cluster, jobs, data, local, tmp_path, launcher, signal):
    name, run_dir = f"signal-{launcher}", tmp_path / "run"
    arguments = *_TRAIN, f"--data.path={data}"
    where = {"LAUNCHER": launcher, "RUN_DIR": run_dir}
    job = jobs.submit("train.sbatch", *arguments, options=["--nodes=2"], name=name, **where)
    _trained(jobs, cluster, name, run_dir)
    cluster.call("scancel", *signal, job)
    cluster.wait_until(lambda: cluster.job_info(job)["Restarts"] == "1", describe=lambda: jobs.text(name))
    assert jobs.final_state(job, name) == "COMPLETED", jobs.text(name)
    assert jobs.text(name).count("2 rank(s), 1 a machine") == 2
    assert "resuming from" in jobs.text(name)
    assert _lines(run_dir) == _lines(local)
    assert sorted(path.name for path in (run_dir / "logs").iterdir()) == ["rank=0000.log", "rank=0001.log"]


def test_a_signalled_refresh_is_requeued_and_publishes(cluster, jobs, data, local, tmp_path):
    name, run_dir = "refresh", tmp_path / "run"
    arguments = f"--data={data}", f"--run_dir={run_dir}", f"--train={json.dumps(_TRAIN)}", "--publish.recommend=[]"
    job = jobs.submit("refresh.sbatch", *arguments, name=name, RANKS_PER_NODE=2)
    _trained(jobs, cluster, name, run_dir)
    cluster.call("scancel", "--signal=USR1", "--batch", job)
    cluster.wait_until(lambda: cluster.job_info(job)["Restarts"] == "1", describe=lambda: jobs.text(name))
    assert jobs.final_state(job, name) == "COMPLETED", jobs.text(name)
    assert "resuming from" in jobs.text(name)
    outcomes = [json.loads(line)["outcome"] for line in jobs.text(name).splitlines() if line.startswith("{")]
    assert outcomes == ["stopped", "published"]
    assert (run_dir / "published" / "current" / "recommendations.parquet").exists()
    assert _lines(run_dir) == _lines(local)


def test_a_job_resumes_on_the_other_node_when_one_goes_down(cluster, jobs, data, local, tmp_path):
    name, run_dir = "down", tmp_path / "run"
    arguments = *_TRAIN, f"--data.path={data}"
    job = jobs.submit("train.sbatch", *arguments, options=["--nodes=2"], name=name, RUN_DIR=run_dir)
    _trained(jobs, cluster, name, run_dir)
    cluster.call("scontrol", "update", f"nodename={NODES[1]}", "state=down", "reason=test")
    try:
        cluster.wait_until(lambda: cluster.job_info(job)["Restarts"] == "1", describe=lambda: jobs.text(name))
        cluster.call("scontrol", "update", f"jobid={job}", "numnodes=1", "numtasks=1")
        assert jobs.final_state(job, name) == "COMPLETED", jobs.text(name)
    finally:
        cluster.call("scontrol", "update", f"nodename={NODES[1]}", "state=resume", check=False)
    assert "1 rank(s), 1 a machine" in jobs.text(name)
    assert "resuming from" in jobs.text(name)
    for line, wanted in zip(_lines(run_dir), _lines(local), strict=True):
        for key in line.keys() - {"store_bytes"}:  # counts one more offset a rank
            # Sums over one rank and over two differ in their last bits, and what lies at a threshold may go either way.
            counts_interests = key.startswith("interests_")
            near = {"rel": 0.05 if key.startswith("fit_p") else 5e-3, "abs": 2 if counts_interests else 2e-4}
            number = isinstance(wanted[key], float) or counts_interests
            assert line[key] == (pytest.approx(wanted[key], **near) if number else wanted[key]), key


def test_the_time_limit_requeues_a_job_and_cancelling_does_not(cluster, jobs, data, tmp_path):
    name, run_dir = "limited", tmp_path / "run"
    arguments = *_TRAIN, f"--data.path={data}", "--training.incremental_epochs=100000"
    limit = ["--time=1", "--signal=B:USR1@40"]
    job = jobs.submit("train.sbatch", *arguments, options=limit, name=name, RUN_DIR=run_dir)
    # On a slow machine the limit may come before the first checkpoint, and again; each time it requeues the job.
    cluster.wait_until(lambda: "resuming from" in jobs.text(name), seconds=240, describe=lambda: jobs.text(name))
    cluster.call("scontrol", "update", f"jobid={job}", "timelimit=30")
    restarts = cluster.job_info(job)["Restarts"]
    assert int(restarts) == jobs.text(name).count("stopped; the job is requeued") >= 1
    cluster.call("scancel", job)
    assert jobs.final_state(job, name) == "CANCELLED"
    assert cluster.job_info(job)["Restarts"] == restarts


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {"LAUNCHER": "mpirun"}, "LAUNCHER: 'mpirun' is none of deepspeed, torchrun, srun"),
        ([], {"DIST_IMSR_ENVIRONMENT": "nowhere"}, "nowhere cannot be read in"),
        (["--data.path=nowhere"], {}, "train: data.path: nowhere holds no dataset.json"),
    ],
)
def test_an_impossible_job_fails_at_once(jobs, tmp_path, arguments, environment, message):
    name = f"refused-{abs(hash(message))}"
    where = {"LAUNCHER": "srun", "RUN_DIR": tmp_path / "run"} | environment
    job = jobs.submit("train.sbatch", *arguments, name=name, **where)
    assert jobs.final_state(job, name) == "FAILED"
    assert jobs.cluster.job_info(job)["ExitCode"] == "2:0"
    assert message in jobs.text(name)
    assert not os.path.exists(tmp_path / "run" / "metrics.jsonl")
