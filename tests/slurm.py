"""A real Slurm cluster on this machine: a controller and two nodes on the loopback interface, with munge."""

import getpass
import os
import socket
import subprocess
import time
from pathlib import Path

NODES = ("127.0.0.1", "127.0.0.2")  # no name server needed
DAEMONS = ("/usr/sbin", "/sbin", "/usr/local/sbin")
"""Folders of Slurm's daemons, besides PATH."""

_CONF = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its credential has expired: two minutes by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1
ReturnToService=2
KillWait=20
SlurmdTimeout=300
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={nodes[0]} NodeHostname=localhost NodeAddr={nodes[0]} Port={ports[1]} CPUs=2
NodeName={nodes[1]} NodeHostname=localhost NodeAddr={nodes[1]} Port={ports[2]} CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """A cluster of two nodes; a context manager that ends it with all its jobs.

    Args:
        folder: for its files; its path must be short enough for a socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._daemons = folder, []
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        self._environment = inherited | {"SLURM_CONF": str(folder / "slurm.conf")}
        self._environment["PATH"] = os.pathsep.join((self._environment["PATH"], *DAEMONS))

    def __enter__(self):
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            for each in (first, second, third):
                each.bind(("127.0.0.1", 0))
            ports = [each.getsockname()[1] for each in (first, second, third)]
        conf = _CONF.format(folder=self.folder, user=getpass.getuser(), nodes=NODES, ports=ports)
        (self.folder / "slurm.conf").write_text(conf)
        (self.folder / "state").mkdir()
        places = [f"--{kind}={self.folder}/munge.{kind}" for kind in ("key-file", "pid-file", "seed-file", "log-file")]
        self.call("mungekey", "--create", "--keyfile", self.folder / "munge.key-file")
        try:
            self._start("munged", "--foreground", "--force", *places, f"--socket={self.folder}/munge.socket")
            self.wait_until(lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D", "-i")
            for node in NODES:
                self._start("slurmd", "-D", "-N", node)
            self.wait_until(lambda: self._idle() == len(NODES))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error) -> None:
        if len(self._daemons) > 1:
            self.call("scancel", "--state=PENDING", check=False)
            self.call("scancel", "--state=RUNNING", check=False)
            self.wait_until(lambda: not self.call("squeue", "--noheader", check=False))
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def call(self, *command, check: bool = True, **environment) -> str:
        """Runs one of Slurm's commands; returns its output."""
        done = subprocess.run(
            [str(argument) for argument in command],
            env=self._environment | {name: str(value) for name, value in environment.items()},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *arguments, **environment) -> str:
        """Submits a job; returns its number."""
        return self.call("sbatch", "--parsable", *arguments, **environment)

    def job_info(self, job: str) -> dict[str, str]:
        """The fields of a job by name."""
        fields = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait_until(self, condition, seconds: float = 60, describe=lambda: "") -> None:
        """Waits for a condition; fails after some seconds, or when a daemon has died."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"timed out: {self._state()}\n{describe()}"
            ended = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            assert not ended, f"{ended}: {[path.read_text()[-2000:] for path in self.folder.glob('slurm*.log')]}"
            time.sleep(0.1)

    def _start(self, *command) -> None:
        self._daemons.append(
            subprocess.Popen(
                command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder
            )
        )

    def _state(self) -> str:
        return "\n".join(self.call(*command, check=False) for command in (["sinfo", "-lN"], ["squeue", "-l"]))

    def _idle(self) -> int:
        states = self.call("sinfo", "--noheader", "--Node", "--format=%T", check=False)
        return states.split().count("idle")
