"""Checks whether an installation can train: matching versions, working native libraries, ranks that communicate.

It must work on a broken installation: it imports only the standard library, and code that may fail to load or crash
runs in a process of its own (`dist_imsr.probes`).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from dist_imsr import probes

REINSTALL = "make clean setup"


@dataclass(frozen=True)
class Pair:
    """Releases that were built against each other.

    Args:
        torch: PyTorch's release.
        fbgemm: the release of fbgemm-gpu and fbgemm-gpu-cpu.
        torchrec: TorchRec's release.
    """

    torch: str
    fbgemm: str
    torchrec: str


PAIRS = (Pair("2.13.0", "1.8.0", "1.8.0"), Pair("2.11.0", "1.6.0", "1.6.1"))
"""The releases of torch, fbgemm and torchrec that match; they are listed nowhere else."""

PACKAGES = (
    *("torch", "fbgemm-gpu", "fbgemm-gpu-cpu", "torchrec", "torchmetrics", "tensordict", "deepspeed", "duckdb"),
    *("pyarrow", "numba", "numpy", "scipy", "xxhash", "jsonargparse", "pyyaml", "rich", "tensorboard", "tqdm"),
    *("tzdata", "pyre-extensions"),
)


@dataclass(frozen=True)
class Finding:
    """A problem of the installation.

    Args:
        problem: in one line.
        fix: the command that fixes it.
    """

    problem: str
    fix: str


@dataclass
class Report:
    """The result of an examination.

    Args:
        facts: values by name.
        findings: the problems.
    """

    facts: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def installed() -> dict[str, str]:
    """The versions of Python and of the installed ones of `PACKAGES`, by name."""
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def pinned() -> dict[str, str]:
    """The versions that this project and torchrec pin exactly, by package name; extras are left to `PAIRS`."""
    pins: dict[str, str] = {}
    for package in ("torchrec", "dist-imsr"):
        try:
            requirements = metadata.requires(package) or []
        except metadata.PackageNotFoundError:
            continue
        exact = (re.fullmatch(r"([\w.-]+)(?:\[.*\])?==([\w.+]+)", requirement) for requirement in requirements)
        pins |= {match[1].lower(): match[2] for match in exact if match}
    return pins


def mismatches(versions: Mapping[str, str], pins: Mapping[str, str]) -> list[Finding]:
    """Compares installed versions with each other and with pins.

    Args:
        versions: of `installed`.
        pins: of `pinned`.

    Returns:
        The problems, possible causes of others first.
    """
    findings = []
    python = versions["python"]
    if _series(python) not in ("3.11", "3.12"):
        findings.append(Finding(f"Python {python} is not 3.11 or 3.12", f"{REINSTALL} PYTHON=/path/to/python3.12"))
    builds = [package for package in ("fbgemm-gpu", "fbgemm-gpu-cpu") if package in versions]
    optional = ("fbgemm-gpu", "fbgemm-gpu-cpu") if builds else ("fbgemm-gpu",)
    missing = [package for package in PACKAGES if package not in versions and package not in optional]
    findings += [Finding(f"{package} is not installed", REINSTALL) for package in missing]
    if "torch" in versions:
        findings += _pair_mismatches(versions, builds)
    for package, pin in pins.items():
        if versions.get(package, pin) != pin:
            findings.append(
                Finding(f"{package} {versions[package]} is installed, but {pin} is pinned", _install(package, pin))
            )
    return findings


def _pair_mismatches(versions: Mapping[str, str], builds: list[str]) -> list[Finding]:
    torch = versions["torch"]
    pair = next((pair for pair in PAIRS if _series(pair.torch) == _series(torch)), None)
    if pair is None:
        known = " or ".join(pair.torch for pair in PAIRS)
        return [Finding(f"torch {torch} is in no combination that is known to work ({known})", REINSTALL)]
    kind, build = ("CPU", "fbgemm-gpu-cpu") if torch.endswith("+cpu") else ("CUDA", "fbgemm-gpu")
    findings = []
    if builds and builds != [build]:
        # Both builds share one folder: the later one overwrites the other, and removing either breaks both.
        both = "fbgemm-gpu and fbgemm-gpu-cpu are both installed, in the same folder"
        other = f"torch {torch} is the {kind} build and {builds[0]} is not"
        remove = f"python -m pip uninstall --yes {' '.join(builds)}"
        findings.append(Finding(both if len(builds) > 1 else other, f"{remove} && {_install(build, pair.fbgemm)}"))
    elif builds and _series(versions[build]) != _series(pair.fbgemm):
        findings.append(_pair_mismatch(versions, build, pair.fbgemm))
    if _series(versions.get("torchrec", pair.torchrec)) != _series(pair.torchrec):
        findings.append(_pair_mismatch(versions, "torchrec", pair.torchrec))
    return findings


def _pair_mismatch(versions: Mapping[str, str], package: str, release: str) -> Finding:
    problem = f"{package} {versions[package]} does not match torch {versions['torch']}, which needs {release}"
    return Finding(problem, _install(package, release))


def _install(package: str, release: str) -> str:
    return f"python -m pip install --no-deps {package}=={release}"


def _series(version: str) -> str:
    """The part of a version within which these packages keep their binary interface."""
    return ".".join(version.split(".")[:2])


def examine_library(name: str, limit: float = 120.0) -> Report:
    """Loads and calls one native library in a process of its own.

    Args:
        name: a key of `probes.LIBRARIES`.
        limit: seconds after which the process counts as hung.

    Returns:
        Facts about the library, or the finding that it does not work.
    """
    facts, fault = _outcome(_start(name), limit)
    if fault:
        return Report(findings=[Finding(f"{name} does not work: {fault}", REINSTALL)])
    return Report(facts={f"{name} runs": "loads and computes"} | facts)


def check_all_to_all(world_size: int = 2, limit: float = 120.0) -> list[list[int]]:
    """Runs a gloo all-to-all between processes: rank r sends 10 r + s to rank s.

    Args:
        world_size: the number of processes.
        limit: seconds after which a rank counts as hung.

    Returns:
        The numbers that each rank received.

    Raises:
        RuntimeError: naming the first rank that failed, and why.
    """
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = str(Path(folder) / "rendezvous")
        ranks = [_start("all_to_all", str(rank), str(world_size), rendezvous) for rank in range(world_size)]
        try:
            outcomes = [_outcome(process, limit) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
    for rank, (_, fault) in enumerate(outcomes):
        if fault:
            raise RuntimeError(f"rank {rank}: {fault}")
    return [json.loads(facts["received"]) for facts, _ in outcomes]


def examine(limit: float = 120.0) -> Report:
    """Examines this installation.

    Args:
        limit: seconds after which a process counts as hung.

    Returns:
        Versions, devices, backends, thread counts and all problems.
    """
    versions = installed()
    report = Report(dict(versions) | {"for prepare.py --engine spark": spark()}, mismatches(versions, pinned()))
    for name in probes.LIBRARIES:
        library = examine_library(name, limit)
        report.facts |= library.facts
        report.findings += library.findings
    try:
        report.facts["gloo all-to-all, 2 ranks"] = f"received {check_all_to_all(2, limit)}"
    except RuntimeError as error:
        # With a working torch, the usual cause is a host name that resolves to no interface of this machine.
        fix = REINSTALL if report.findings else "export GLOO_SOCKET_IFNAME=lo"
        report.findings.append(Finding(f"gloo all-to-all failed: {error}", fix))
    return report


def spark() -> str:
    """What there is of Spark, which is an extra: the releases of pyspark and Java."""
    try:
        found = f"pyspark {metadata.version('pyspark')}"
    except metadata.PackageNotFoundError:
        found = "no pyspark (pip install 'dist-imsr[spark]')"
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=str(Path(home) / "bin") if home else None)
    if java is None:
        return f"{found}, no Java runtime (Debian: openjdk-17-jre-headless)"
    lines = subprocess.run([java, "-version"], capture_output=True, text=True).stderr.splitlines()
    return f"{found}, {lines[0] if lines else java}"


def _start(probe: str, *arguments: str) -> "subprocess.Popen[str]":
    # -P keeps this folder out of the import path: its modules (data, model, config) would shadow others.
    return subprocess.Popen(
        [sys.executable, "-P", probes.__file__, probe, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _outcome(process: "subprocess.Popen[str]", limit: float) -> tuple[dict[str, Any], str]:
    """Waits for a probe; returns its facts, and its error or an empty string."""
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return {}, f"no answer within {limit:g} s"
    if process.returncode < 0:
        return {}, f"the process died of signal {-process.returncode}"
    if process.returncode:
        return {}, (errors.strip().splitlines() or ["no message"])[-1]
    return json.loads(output.splitlines()[-1]), ""
