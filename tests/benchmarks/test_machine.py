import json
import subprocess

import torch

from dist_imsr.benchmarks import machine as told_of
from dist_imsr.benchmarks.machine import machine


def test_the_host():
    told = machine("cpu")
    assert told["device"] == told["host"]["processor"]
    assert told["devices"] == 0
    assert told["host"]["cores"] >= 1
    assert told["host"]["memory_bytes"] > 1 << 28
    assert told["versions"]["torch"] == torch.__version__
    assert json.loads(json.dumps(told)) == told


def test_the_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(told_of, "_ROOT", tmp_path)
    told = machine("cpu")
    assert told["commit"] is told["modified"] is None  # no repository
    who = "-c", "user.name=somebody", "-c", "user.email=somebody@example.org"
    for command in (("init", "--quiet"), (*who, "commit", "--quiet", "--allow-empty", "--message", "first")):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    told = machine("cpu")
    assert len(told["commit"]) == 40
    assert told["modified"] is False
    (tmp_path / "new").touch()
    assert machine("cpu")["modified"] is True


def test_a_device_has_a_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"device {index}")
    monkeypatch.setattr("dist_imsr.devices.device_count", lambda: 3)
    told = machine("cuda")
    assert (told["device"], told["devices"]) == ("device 0", 3)
