"""On what figures were measured: device, host, versions, and the commit of this project."""

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

_ROOT = Path(__file__).resolve().parents[2]


def machine(device: str) -> dict[str, Any]:
    """Tells of this machine what figures depend on.

    Args:
        device: ``cpu`` or ``cuda``.

    Returns:
        ``device``: its name, that of the host's processor where ranks work there; ``devices``: how many there are;
        ``host``: processor, cores that this process may use, and bytes of memory; ``versions`` of what is installed,
        with CUDA's and its driver's; ``commit`` of this project and whether files were ``modified`` since, None where
        git tells nothing.
    """
    on_cuda = device == "cuda"
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
        "commit": _said("git", "-C", str(_ROOT), "rev-parse", "HEAD"),
        "modified": None if (said := _said("git", "-C", str(_ROOT), "status", "--porcelain")) is None else bool(said),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """The version of NVIDIA's driver, which no library tells."""
    said = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return said.splitlines()[0] if said else None


def _said(*command: str) -> str | None:
    """What a command printed; None where it is not installed or failed."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout.strip()
