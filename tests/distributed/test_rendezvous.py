import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dist_imsr.distributed import rendezvous
from dist_imsr.distributed.command import BAD_INPUT, FAILED, NotStarted
from dist_imsr.distributed.rendezvous import named, open_store
from dist_imsr.launcher import RankInfo
from dist_imsr.processes import free_port
from tests.commands import ROOT
from tests.prepared import drawn_history, write_dataset


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(rendezvous, "_FIRST_NOTICE", 0.3)
    monkeypatch.setattr(rendezvous, "_NEXT_NOTICE", 0.5)
    monkeypatch.setattr(rendezvous, "_FOREIGN", 1.0)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


def _ranks(world_size, port, *started, seconds=20.0):
    """What `open_store` gives or raises on each of the started ranks, all in this process."""

    def start(rank):
        try:
            return open_store(RankInfo(rank, world_size, port=port), seconds)
        except NotStarted as error:
            return error

    with ThreadPoolExecutor(len(started)) as threads:
        return list(threads.map(start, started))


def test_all_ranks_share_a_store(caplog):
    stores = _ranks(3, free_port(), 0, 1, 2)
    stores[2].set("key", "value")
    assert [store.get("key") for store in stores] == [b"value"] * 3
    assert not caplog.records


def test_a_lone_rank_needs_no_address():
    store = open_store(RankInfo(0, 1, address="no.such.host", port=1), 5)
    store.set("key", "value")
    assert store.get("key") == b"value"


def test_rank_0_says_for_whom_it_waits_and_ends_in_time(caplog, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    port = free_port()
    errors = _ranks(4, port, 0, 2, seconds=1.5)
    waits = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(waits) >= 2
    assert waits[0].getMessage() == (
        f"rank 0 waits at 127.0.0.1:{port} for ranks 1, 3 of 4 ranks; to run one rank alone: unset RANK WORLD_SIZE"
    )
    assert [error.status for error in errors] == [FAILED] * 2
    assert "waited 1.5 seconds" in str(errors[0])
    assert "rank 0 ended" in str(errors[1])


@pytest.mark.parametrize("address", ["127.0.0.1", "no.such.host.invalid"])
def test_another_rank_says_that_it_cannot_reach_rank_0(caplog, address):
    port = free_port()
    with pytest.raises(NotStarted, match=rf"for rank 0 at {address}:{port} \(.+\): start all 2 ranks"):
        open_store(RankInfo(1, 2, address=address, port=port), 0.8)
    assert caplog.records[0].levelno == logging.ERROR  # the terminal shows no less of this rank
    assert f"waits for rank 0 at {address}:{port}" in caplog.text


def test_a_rank_that_ends_is_awaited_again():
    port = free_port()
    with ThreadPoolExecutor(1) as threads:
        rank_0 = threads.submit(_ranks, 3, port, 0)
        first = rendezvous._dial(RankInfo(1, 3, port=port), rendezvous._Wait(RankInfo(1, 3), 5))
        assert rendezvous._answers(first, rendezvous._report_of(1, 3))
        first.close()
        stores = _ranks(3, port, 1, 2)
        stores += rank_0.result()
    assert not any(isinstance(store, NotStarted) for store in stores)


def _answer(listener, reply):
    """Accepts connections and answers each in the same way, until the listener is closed."""
    with contextlib.suppress(OSError):
        kept = []
        while True:
            kept.append(listener.accept()[0])
            if reply is None:
                kept.pop().close()
            kept and kept[-1].sendall(reply)


@pytest.mark.parametrize("reply", [None, b"", b"HTTP/1.1 400 Bad Request\r\n"])
def test_another_program_at_the_port_ends_all_ranks(reply):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threading.Thread(target=_answer, args=(listener, reply), daemon=True).start()
        begin = time.monotonic()
        errors = _ranks(2, port, 0, 1)
        assert time.monotonic() - begin < 5
    assert [error.status for error in errors] == [BAD_INPUT] * 2
    assert f"port {port} of 127.0.0.1 is taken by another program: choose another with --master_port" in str(errors[0])
    assert f"what answers at 127.0.0.1:{port} is not rank 0 of these 2 ranks" in str(errors[1])


def test_ranks_of_another_job_do_not_join():
    port = free_port()
    with ThreadPoolExecutor(1) as threads:
        rank_0 = threads.submit(_ranks, 2, port, 0)
        [error] = _ranks(4, port, 1)  # a job of 4 ranks at the same port
        assert "another job" in str(error)
        [rank_1] = _ranks(2, port, 1)
        assert not isinstance(rank_1, NotStarted)
        assert not isinstance(rank_0.result()[0], NotStarted)


@pytest.mark.parametrize(
    ("ranks", "name"), [([1], "rank 1"), ([1, 2, 3], "ranks 1-3"), ([1, 3, 4, 9], "ranks 1, 3-4, 9")]
)
def test_named(ranks, name):
    assert named(ranks) == name


def _command(tmp_path, data, **variables):
    arguments = ["--data.path", data, "--run_dir", tmp_path / "run", "--model.dim", 8]
    return subprocess.Popen(
        [sys.executable, ROOT / "launch" / "train.py", *map(str, arguments)],
        env=os.environ | variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_ctrl_c_ends_the_wait_of_the_command(tmp_path):
    data = write_dataset(tmp_path / "data", drawn_history())
    port = free_port()
    process = _command(tmp_path, data, RANK="0", WORLD_SIZE="2", MASTER_PORT=str(port))
    line = process.stderr.readline()
    assert f"rank 0 waits at 127.0.0.1:{port} for rank 1 of 2 ranks" in line
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


def test_a_taken_port_ends_the_command_in_one_line(tmp_path):
    data = write_dataset(tmp_path / "data", drawn_history())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = _command(tmp_path, data, RANK="0", WORLD_SIZE="2", MASTER_PORT=str(port))
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == BAD_INPUT
    assert errors.startswith(f"train: rank 0: port {port} of 127.0.0.1 is taken by another program: ")
    assert errors.count("\n") == 1
