import json
import subprocess

import torch

from dist_imsr import machine as machine_module
from dist_imsr.machine import machine


def test_the_host():
    report = machine("cpu")
    assert report["device"] == report["host"]["processor"]
    assert report["devices"] == 0
    assert report["host"]["cores"] >= 1
    assert report["host"]["memory_bytes"] > 1 << 28
    assert report["versions"]["torch"] == torch.__version__
    assert json.loads(json.dumps(report)) == report


def test_the_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_module, "_ROOT", tmp_path)
    report = machine("cpu")
    assert report["commit"] is report["modified"] is None  # no repository
    who = "-c", "user.name=somebody", "-c", "user.email=somebody@example.org"
    for command in (("init", "--quiet"), (*who, "commit", "--quiet", "--allow-empty", "--message", "first")):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    report = machine("cpu")
    assert len(report["commit"]) == 40
    assert report["modified"] is False
    (tmp_path / "new").touch()
    assert machine("cpu")["modified"] is True


def test_a_device_has_a_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"device {index}")
    monkeypatch.setattr("dist_imsr.devices.device_count", lambda: 3)
    report = machine("cuda")
    assert (report["device"], report["devices"]) == ("device 0", 3)
