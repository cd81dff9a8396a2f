"""Whether an installation can train: versions that fit each other, native libraries that load, ranks that talk.

It must work where things are broken: it imports nothing but the standard library, and whatever may fail to load or
crash runs in a process of its own.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

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
"""The only place that says which torch, fbgemm and torchrec go together."""

PACKAGES = (
    *("torch", "fbgemm-gpu", "fbgemm-gpu-cpu", "torchrec", "torchmetrics", "tensordict", "deepspeed", "duckdb"),
    *("pyarrow", "numpy", "scipy", "xxhash", "jsonargparse", "pyyaml", "rich", "tensorboard", "tqdm"),
    "pyre-extensions",
)


@dataclass(frozen=True)
class Finding:
    """Something that is off.

    Args:
        wrong: what is wrong, in one line.
        mend: the command that mends it.
    """

    wrong: str
    mend: str


@dataclass
class Report:
    """What an examination saw.

    Args:
        facts: a value by name, in the order of reading.
        findings: what is off; empty for a sound installation.
    """

    facts: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def installed() -> dict[str, str]:
    """Reads the versions that stand here.

    Returns:
        The versions of Python and of those of `PACKAGES` that are installed, by name.
    """
    versions = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def pinned() -> dict[str, str]:
    """Reads the exact pins that this project and torchrec, as installed here, put on other packages.

    Returns:
        The pinned version by package name; those of extras are left to `PAIRS`.
    """
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
    """Judges whether versions fit each other.

    Args:
        versions: a version by package name, as `installed` gives it.
        pins: the version that must stand, by package name, as `pinned` gives it.

    Returns:
        One finding for each thing that is off, those that cause others first.
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
                Finding(f"{package} {versions[package]} stands where {pin} is pinned", _install(package, pin))
            )
    return findings


def _pair_mismatches(versions: Mapping[str, str], builds: list[str]) -> list[Finding]:
    torch = versions["torch"]
    pair = next((pair for pair in PAIRS if _series(pair.torch) == _series(torch)), None)
    if pair is None:
        known = " or ".join(pair.torch for pair in PAIRS)
        return [Finding(f"torch {torch} is in no pair that is known to work ({known})", REINSTALL)]
    kind, build = ("CPU", "fbgemm-gpu-cpu") if torch.endswith("+cpu") else ("CUDA", "fbgemm-gpu")
    findings = []
    if builds and builds != [build]:
        # Both builds fill one folder: the later overwrites the earlier, and removing one breaks the other.
        both = "fbgemm-gpu and fbgemm-gpu-cpu are both installed, in the same folder"
        other = f"torch {torch} is the {kind} build and {builds[0]} the other's"
        remove = f"python -m pip uninstall --yes {' '.join(builds)}"
        findings.append(Finding(both if len(builds) > 1 else other, f"{remove} && {_install(build, pair.fbgemm)}"))
    elif builds and _series(versions[build]) != _series(pair.fbgemm):
        findings.append(_misfit(versions, build, pair.fbgemm))
    if _series(versions.get("torchrec", pair.torchrec)) != _series(pair.torchrec):
        findings.append(_misfit(versions, "torchrec", pair.torchrec))
    return findings


def _misfit(versions: Mapping[str, str], package: str, release: str) -> Finding:
    wrong = f"{package} {versions[package]} does not go with torch {versions['torch']}, which needs {release}"
    return Finding(wrong, _install(package, release))


def _install(package: str, release: str) -> str:
    return f"python -m pip install --no-deps {package}=={release}"


def _series(version: str) -> str:
    """The part of a version within which these packages keep their binary interface."""
    return ".".join(version.split(".")[:2])


def _torch() -> dict[str, str]:
    import torch
    import torch.distributed as dist

    assert torch.ones(2, 2).mm(torch.ones(2, 2)).sum() == 8
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    backends = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}
    return {
        "devices": ", ".join(names) or f"cpu ({os.cpu_count()} cores)",
        "backends": ", ".join(name for name, available in backends.items() if available) or "none",
        "threads": f"{torch.get_num_threads()} in an operator, {torch.get_num_interop_threads()} between operators, "
        f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'unset')}",
    }


def _fbgemm() -> dict[str, str]:
    import fbgemm_gpu  # noqa: F401 (loads the operators)
    import torch
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen as Tables

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(torch.tensor([1, 2], device=device))
    assert offsets.tolist() == [0, 1, 3], offsets
    place = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if cuda else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    table = Tables([(4, 4, *place)], optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD, learning_rate=1.0, device=device)
    table.init_embedding_weights_uniform(1.0, 1.0)
    looked_up = table(torch.tensor([0, 1, 2], device=device), offsets)
    assert looked_up.sum() == 12, looked_up
    looked_up.sum().backward()
    rows = table.split_embedding_weights()[0].sum(1)
    assert rows.lt(4).tolist() == [True, True, True, False], rows
    return {"fbgemm_gpu runs": f"jagged and table-batched operators compute on {device.type}"}


def _torchrec() -> dict[str, str]:
    import torch
    import torchrec

    jagged = torchrec.KeyedJaggedTensor.from_lengths_sync(["a", "b"], torch.arange(3), lengths=torch.tensor([1, 2]))
    assert jagged.permute([1, 0]).values().tolist() == [1, 2, 0]
    return {}


def _deepspeed() -> dict[str, str]:
    import deepspeed

    return {"deepspeed accelerator": deepspeed.accelerator.get_accelerator().device_name()}


def _pyarrow() -> dict[str, str]:
    import pyarrow
    import pyarrow.compute

    assert pyarrow.compute.sum(pyarrow.array([1, 2])).as_py() == 3
    return {}


def _duckdb() -> dict[str, str]:
    import duckdb

    assert duckdb.connect().execute("select 42").fetchall() == [(42,)]
    return {}


def _all_to_all(rank: str, world_size: str, rendezvous: str) -> dict[str, str]:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=int(world_size))
    sent = torch.arange(int(world_size)) + 10 * int(rank)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    dist.destroy_process_group()
    assert received.tolist() == [10 * sender + int(rank) for sender in range(int(world_size))], received
    return {"received": json.dumps(received.tolist())}


LIBRARIES: dict[str, Callable[[], dict[str, str]]] = {
    "torch": _torch,
    "fbgemm_gpu": _fbgemm,
    "torchrec": _torchrec,
    "deepspeed": _deepspeed,
    "pyarrow": _pyarrow,
    "duckdb": _duckdb,
}
"""Loads a native library, calls one of its operators, and says what is worth knowing about it."""


def examine_library(name: str, limit: float = 120.0) -> Report:
    """Loads and calls one native library in a process of its own, which it may crash.

    Args:
        name: a key of `LIBRARIES`.
        limit: seconds until it counts as hung.

    Returns:
        What the library says of itself, or the finding that it does not work.
    """
    facts, fault = _outcome(_start(name), limit)
    if fault:
        return Report(findings=[Finding(f"{name} does not work: {fault}", REINSTALL)])
    return Report(facts={f"{name} runs": "loads and computes"} | facts)


def exchange(world_size: int = 2, limit: float = 120.0) -> list[list[int]]:
    """Runs one gloo all-to-all between real processes: rank r sends 10 r + s to rank s.

    Args:
        world_size: how many processes.
        limit: seconds for each rank until it counts as hung.

    Returns:
        What each rank received.

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
        limit: seconds for each process that is started.

    Returns:
        Versions, devices, backends and thread counts, and everything that is off.
    """
    versions = installed()
    report = Report(dict(versions), mismatches(versions, pinned()))
    for name in LIBRARIES:
        seen = examine_library(name, limit)
        report.facts |= seen.facts
        report.findings += seen.findings
    try:
        report.facts["gloo all-to-all, 2 ranks"] = f"received {exchange(2, limit)}"
    except RuntimeError as error:
        # The commonest cause on a sound torch: a host name that resolves to no interface of this machine.
        mend = REINSTALL if report.findings else "export GLOO_SOCKET_IFNAME=lo"
        report.findings.append(Finding(f"gloo all-to-all failed: {error}", mend))
    return report


def _start(probe: str, *arguments: str) -> "subprocess.Popen[str]":
    # -P keeps this folder, whose names (data, model, config) others may use, out of the import path.
    return subprocess.Popen(
        [sys.executable, "-P", __file__, probe, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _outcome(process: "subprocess.Popen[str]", limit: float) -> tuple[dict[str, Any], str]:
    """Waits for a probe; its facts, and its fault or nothing."""
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


if __name__ == "__main__":
    probes: dict[str, Callable[..., dict[str, str]]] = {**LIBRARIES, "all_to_all": _all_to_all}
    sys.stdout.write("\n" + json.dumps(probes[sys.argv[1]](*sys.argv[2:])) + "\n")
