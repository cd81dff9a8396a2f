"""make demo with a stand-in for DeepSpeed's launcher."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
# It sends what a terminal sends at Ctrl-C, and goes on, as the launcher does while its ranks write a checkpoint.
LAUNCHER = """#!/bin/sh
echo "$@" >>launched.txt
kill -INT 0
sleep 0.5
echo waited >>launched.txt
exit 0
"""


def test_ctrl_c_waits_for_the_ranks_and_starts_no_other_strategy(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    launcher = tmp_path / ".venv" / "bin" / "deepspeed"
    launcher.parent.mkdir(parents=True)
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)
    manifest = tmp_path / "data" / "complete_journey" / "dataset.json"  # so that nothing is prepared
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    made = subprocess.run(
        ["make", "--old-file=setup", "demo", "RANKS=2"],
        cwd=tmp_path,
        # pytest may be a job of make itself, or one that ignores Ctrl-C
        env={name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
        check=False,
    )
    assert made.returncode == -signal.SIGINT
    launched, waited = (tmp_path / "launched.txt").read_text().splitlines()
    assert "--strategy.name frozen" in launched
    assert waited == "waited"
