"""Skips what this machine cannot run; pyproject.toml declares the marks.

Tests see no CUDA device, nor do the processes that they start, unless pytest is asked for those that need one: ``-m
cuda``. Ranks of several tests would share a device otherwise, which NCCL refuses.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator

import pytest

from dist_imsr.launcher import RankInfo
from tests.slurm import DAEMONS


def _no_cuda() -> str:
    from dist_imsr import devices

    return "" if devices.device_count() else "no CUDA device; where there is one: -m cuda"


def _no_slurm() -> str:
    path = os.pathsep.join((os.environ["PATH"], *DAEMONS))
    missing = [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if not shutil.which(name, path=path)]
    return f"no {', '.join(missing)} (Debian: slurm-wlm and munge)" if missing else ""


def _no_big_data() -> str:
    return "" if os.environ.get("DIST_IMSR_BIGDATA") else "DIST_IMSR_BIGDATA names no folder"


_REASONS: dict[str, Callable[[], str]] = {"cuda": _no_cuda, "slurm": _no_slurm, "bigdata": _no_big_data}


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr != "cuda":
        early = "torch" in sys.modules and sys.modules["torch"].cuda.device_count()
        assert not early, "a folder's own conftest.py has seen the devices before: name files, or select tests by -k"
        # DeepSpeed's launcher sets the first anew for its ranks.
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Of each kind that work is done on."""
    return str(request.param)


@pytest.fixture(autouse=True, scope="module")
def _ranks_of_its_own() -> Iterator[None]:
    """A module's tests may share ranks, and no other's."""
    yield
    if "tests.ranks" in sys.modules:
        sys.modules["tests.ranks"].end_kept()


@pytest.fixture(autouse=True)
def _place_of_its_own() -> Iterator[None]:
    """A command that connects in this process exports its place, which the commands of later tests would inherit."""
    names = RankInfo().environment
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for mark, why_not in _REASONS.items():
        marked = [item for item in items if item.get_closest_marker(mark)]
        reason = why_not() if marked else ""
        if reason:
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))
