"""Runs ``launch/train.py`` on ranks without a launcher, forked from a process that has imported the libraries."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from dist_imsr.launcher import RankInfo
from dist_imsr.processes import free_port, new_process

ROOT = Path(__file__).parents[1]


class Rank:
    """A forked rank with the interface of `subprocess.Popen`.

    Args:
        arguments: of the command.
        environment: variables to set.
        errors: a file for its standard error.
        before: a function that the process calls first, or None.
    """

    def __init__(self, arguments, environment, errors, before):
        errors.touch()
        self._errors = errors
        self._process = new_process(_command, (arguments, environment, errors, before), cuda=False)
        self._process.start()

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout):
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("train.py", timeout)
        return self._process.exitcode

    def communicate(self, timeout=60):
        """Returns None for standard output, and standard error."""
        self.wait(timeout)
        return None, self._errors.read_text()

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def handles(self, number):
        """Whether the process has installed a handler for a signal; False after its end."""
        status = Path(f"/proc/{self._process.pid}/status")
        caught = re.findall(r"SigCgt:\s*(\w+)", status.read_text()) if status.exists() else []
        return any(int(signals, 16) >> (number - 1) & 1 for signals in caught)

    def kill(self):
        self._process.kill()


def start_ranks(folder, *arguments, world_size=2, before=None, restarts=0, forked=True):
    """Starts the command on several ranks, with files for standard error in ``folder``; returns the ranks.

    Forked ranks start fast, but skip Python's teardown at their end.
    """
    errors = Path(tempfile.mkdtemp(dir=folder))
    ranks, port = [], free_port()
    for rank in range(world_size):
        variables = RankInfo(rank, world_size, rank, world_size, port=port).environment
        environment = os.environ | variables | {"SLURM_RESTART_COUNT": str(restarts)}
        if forked:
            ranks.append(Rank([*map(str, arguments)], environment, errors / f"rank={rank}", before))
        else:
            command = [sys.executable, str(ROOT / "launch" / "train.py"), *map(str, arguments)]
            piped = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
            ranks.append(subprocess.Popen(command, env=environment, cwd=ROOT, **piped))
    return ranks


def _command(arguments, environment, errors, before):
    for standard, path in ((1, os.devnull), (2, errors)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(descriptor, standard)
        os.close(descriptor)
    os.chdir(ROOT)
    os.environ.update(environment)
    from dist_imsr.config import parse
    from dist_imsr.training.config import TrainConfig
    from dist_imsr.training.run import train

    if before is not None:
        before()
    sys.argv = ["train.py", *arguments]
    sys.exit(train(parse(TrainConfig)))
