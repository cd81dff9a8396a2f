"""A standalone Spark of two workers on this machine, whose executors are killed while they prepare a log."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_imsr.data.dataset import DataConfig, Dataset
from tests.data.test_spark import drawn, lines_of, write
from tests.kills import contents

pytestmark = [pytest.mark.spark, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parents[2]
EXECUTOR = "CoarseGrainedExecutorBackend"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    """The URL of a master, and the processes of two workers."""
    import pyspark

    program = str(Path(pyspark.__file__).parent / "bin" / "spark-class")
    environment = os.environ | {
        "SPARK_HOME": str(Path(pyspark.__file__).parent),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_DAEMON_MEMORY": "256m",
        "PYSPARK_PYTHON": sys.executable,
    }
    port = _free_port()
    url = f"spark://127.0.0.1:{port}"
    here = ["--host", "127.0.0.1", "--webui-port", "0"]
    worker = ["org.apache.spark.deploy.worker.Worker", *here, "--cores", "1", "--memory", "1200M"]
    with contextlib.ExitStack() as stack:
        started = []
        for number, command in enumerate(
            [
                ["org.apache.spark.deploy.master.Master", *here, "--port", str(port)],
                *([*worker, "--work-dir", str(tmp_path / f"work-{one}"), url] for one in range(2)),
            ]
        ):
            log = stack.enter_context((tmp_path / f"daemon-{number}.log").open("wb"))
            process = subprocess.Popen([program, *command], env=environment, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            started.append(process.pid)
        yield url, started[1:]


def _executors(workers: list[int]) -> list[int]:
    """The processes of executors, which workers have started."""
    found = []
    for worker in workers:
        children = Path(f"/proc/{worker}/task").glob("*/children")
        for child in (int(pid) for path in children for pid in path.read_text().split()):
            with contextlib.suppress(OSError):
                if EXECUTOR in Path(f"/proc/{child}/cmdline").read_text():
                    found.append(child)
    return found


@pytest.mark.parametrize("large", [False, pytest.param(True, marks=[pytest.mark.bigdata, pytest.mark.timeout(3600)])])
def test_executors_that_are_killed(tmp_path: Path, workers: tuple[str, list[int]], large: bool) -> None:
    log = Path(os.environ["DIST_IMSR_BIGDATA"]) if large else tmp_path / "log.csv"
    if not large:
        write(log, lines_of("taobao", drawn(20_000)))
    fixed = [
        "--source",
        "taobao",
        "--input",
        str(log.resolve()),
        "--min_interactions",
        "2",
        "--max_bad_fraction",
        "0.1",
    ]
    fixed += [] if large else ["--buckets", "4"]
    command = [sys.executable, "launch/prepare.py", *fixed]
    subprocess.run([*command, "--output", str(tmp_path / "duckdb")], cwd=REPOSITORY, check=True, capture_output=True)
    url, daemons = workers
    settings = [
        f"spark.executor.memory={'1g' if large else '512m'}",
        "spark.sql.shuffle.partitions=3",
        "spark.driver.host=127.0.0.1",
    ]
    settings += ["spark.driver.bindAddress=127.0.0.1", "spark.ui.enabled=false"]
    spark = [
        "--engine",
        "spark",
        "--spark.master",
        url,
        "--spark.conf",
        *settings,
        "--memory_limit",
        "1GiB" if large else "512MiB",
    ]
    with (tmp_path / "spark.log").open("w+") as output:
        process = subprocess.Popen(
            [*command, "--output", str(tmp_path / "spark"), *spark], cwd=REPOSITORY, stdout=output, stderr=output
        )
        killed = set[int]()
        for phase in ("survey:", "users:", "write:"):  # once each is over
            while process.poll() is None and phase not in (tmp_path / "spark.log").read_text():
                time.sleep(0.2)
            one = [pid for pid in _executors(daemons) if pid not in killed][:1]
            for pid in one:
                os.kill(pid, signal.SIGKILL)
            killed.update(one)
        status = process.wait()
        output.seek(0)
        assert status == 0, output.read()[-3000:]
    assert len(killed) >= 2
    assert contents(tmp_path / "spark") == contents(tmp_path / "duckdb")
    Dataset(DataConfig(tmp_path / "spark", verify=True))
