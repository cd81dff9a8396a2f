"""Refreshes with the processes of their steps, which are killed, stopped and refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from dist_imsr.config import to_yaml
from dist_imsr.files import locked
from dist_imsr.refresh.refresh import LOG, refresh
from tests.refresh.daily import TRAIN, config_in, published

ROOT = Path(__file__).parents[2]
LONG = [*TRAIN, "--training.epochs=30", "--training.patience=0"]


def _config(three_days, place, **changes):
    shutil.copytree(three_days, place / "data")
    return config_in(place, **changes)


def _wait(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _free(run_dir):
    """Whether no rank trains."""
    try:
        with locked(run_dir / ".lock", "locked"):
            return True
    except ValueError:
        return False


def _line(printed):
    (line,) = printed.splitlines()
    return json.loads(line)


def _stop_once_resumed(log):
    _wait(lambda: "resuming from" in log.read_text())
    os.kill(os.getpid(), signal.SIGTERM)


def test_killed_and_stopped_it_ends_with_the_same_files(days, three_days, tmp_path, capfd):
    (tmp_path / "killed").mkdir()
    config = _config(three_days, tmp_path / "killed", train=LONG, input=days[3])
    (tmp_path / "refresh.yaml").write_text(to_yaml(config))
    command = [sys.executable, "launch/refresh.py", f"--config={tmp_path / 'refresh.yaml'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _wait(lambda: [*config.run_dir.glob("checkpoints/span=00-*")])
    process.kill()
    out, errors = process.communicate()
    assert out == b""
    assert b"append: spans 3 to 3 with" in errors
    _wait(lambda: _free(config.run_dir), seconds=5)  # its ranks are killed, too

    stopping = threading.Thread(target=_stop_once_resumed, args=(config.run_dir / LOG,))
    stopping.start()
    assert refresh(config) == 75
    stopping.join()
    printed = capfd.readouterr()
    line = _line(printed.out)
    assert (line["outcome"], line["status"], [*line["seconds"]]) == ("stopped", 75, ["train"])
    assert line["reason"] == "stopped during train; the same command continues"
    assert "train: stopped; the same command resumes from" in printed.err
    assert printed.err.endswith(f"refresh: {line['reason']}\n")

    assert refresh(config) == 0
    printed = capfd.readouterr()
    line = _line(printed.out)
    assert (line["outcome"], [*line["seconds"]]) == ("published", ["train", "recommend", "export"])
    assert line["append"]["spans"] == [3, 3]
    assert "resuming from" in printed.err
    (tmp_path / "whole").mkdir()
    whole = _config(three_days, tmp_path / "whole", train=LONG, input=days[3])
    assert refresh(whole) == 0
    assert published(tmp_path / "killed") == published(tmp_path / "whole")
    assert (config.published / "current").readlink() == (whole.published / "current").readlink()


def test_a_step_that_refuses_its_input_ends_the_refresh_with_its_reason(days, three_days, tmp_path, capfd):
    config = _config(three_days, tmp_path, input=tmp_path / "bad.csv")
    config.input.write_text(days[3].read_text().replace("\nu", "\n,u", 9))
    before = (config.data / "dataset.json").read_bytes()
    assert refresh(config) == 2
    printed = capfd.readouterr()
    line = _line(printed.out)
    assert (line["outcome"], line["append"], [*line["seconds"]]) == ("refused", None, ["append"])
    assert line["reason"].startswith("append: ")
    assert "bad.csv" in line["reason"]
    assert printed.err.endswith(f"refresh: {line['reason']}\n")
    assert (config.data / "dataset.json").read_bytes() == before
