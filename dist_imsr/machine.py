"""The machine and the software that figures were measured with."""

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dist_imsr import devices
from dist_imsr.doctor import installed

_ROOT = Path(__file__).resolve().parents[1]


def machine(device: str) -> dict[str, Any]:
    """Describes what figures depend on.

    Args:
        device: ``cpu`` or ``cuda``.

    Returns:
        ``device``: its name, or the processor's where ranks work on the host; ``devices``: their number; ``host``:
        processor, cores that this process may use, and bytes of memory; ``versions`` of packages, CUDA and its driver;
        ``commit`` of this project and whether files were ``modified`` since, None outside of a git repository.
    """
    on_cuda = device == "cuda"
    changes = _output_of("git", "-C", str(_ROOT), "status", "--porcelain")
    return {
        "device": torch.cuda.get_device_name(0) if on_cuda else _processor(),
        "devices": devices.device_count() if on_cuda else 0,
        "host": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.platform(),
        },
        "versions": installed() | {"triton": _version("triton"), "cuda": torch.version.cuda, "driver": _driver()},
        "commit": _output_of("git", "-C", str(_ROOT), "rev-parse", "HEAD"),
        "modified": None if changes is None else bool(changes),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """The version of NVIDIA's driver, which no library reports."""
    versions = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return versions.splitlines()[0] if versions else None


def _output_of(*command: str) -> str | None:
    """What a command printed; None where it is not installed or failed."""
    if shutil.which(command[0]) is None:
        return None
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if result.returncode else result.stdout.strip()
