"""launch/gpu_check.sh with stand-ins for its commands."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "gpu_check.sh"
STANDS_IN = """#!/bin/sh
echo "$@" >>{record}
case "$*" in *quick.json) exit 3;; esac
"""
TIMEOUT = """#!/bin/sh
echo "$3" >>{record}
shift 3
exec "$@"
"""


def _check(folder, *arguments):
    """Runs the script; returns its exit status, its commands, their limits in seconds, and the summary."""
    for name, text in (("python3", STANDS_IN), ("timeout", TIMEOUT)):
        program = folder / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text.format(record=folder / f"{name}.txt"))
        program.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}", "DATA": str(folder / "data")}
    end = subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False)
    commands, limits = ((folder / f"{name}.txt").read_text().splitlines() for name in ("python3", "timeout"))
    summary = (folder / "out" / "summary.txt").read_text().splitlines()
    return end.returncode, commands, [int(limit) for limit in limits], [line.rpartition(",")[0] for line in summary]


def test_a_part_that_fails_does_not_stop_the_next_within_10_minutes(tmp_path):
    status, commands, limits, summary = _check(tmp_path, tmp_path / "out")
    assert status == 1
    assert summary == [
        *("doctor: status 0", "tests: status 0", "quick: status 3", "figures_1: status 0", "figures_2: status 0")
    ]
    assert [command.split()[0] for command in commands] == ["launch/doctor.py", "-m", *["launch/bench.py"] * 3]
    assert "-m cuda" in commands[1]
    assert sum("--device cuda" in command for command in commands) == 3
    assert "kernel" in commands[3]
    assert sum(limits) <= 600


def test_data_and_a_span_take_5_minutes(tmp_path):
    status, commands, limits, summary = _check(tmp_path, tmp_path / "out", "span")
    assert status == 0
    assert summary == ["span_data: status 0", "span: status 0"]
    assert [command.split()[0] for command in commands] == ["launch/prepare.py", "launch/bench.py"]
    assert sum(limits) <= 300


def test_the_cpu_tries_the_parts_in_small(tmp_path):
    status, commands, limits, _ = _check(tmp_path, "--device", "cpu", tmp_path / "out", "doctor", "tests", "figures")
    assert status == 0
    assert "-k cpu" in commands[1]
    assert all("--device cpu --quick" in command and "kernel" not in command for command in commands[2:])
    assert min(limits) == 500


@pytest.mark.parametrize("arguments", [("--device", "tpu", "out"), ("out", "spam")])
def test_what_it_does_not_know_is_refused(tmp_path, arguments):
    end = subprocess.run([SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert end.returncode == 2
    assert len(end.stderr.splitlines()) == 1
