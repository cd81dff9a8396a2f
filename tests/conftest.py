"""Skips tests that this machine cannot run; pyproject.toml declares the marks.

CUDA devices are hidden from the tests and their processes, unless pytest runs with ``-m cuda``. Otherwise, ranks of
concurrent tests would share a device, which NCCL refuses.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Threads of concurrent tests and ranks share few cores and would mostly wait for each other. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from dist_imsr.launcher import RankInfo
from tests.slurm import DAEMONS


def _no_cuda() -> str:
    from dist_imsr import devices

    return "" if devices.device_count() else "no CUDA device, or no -m cuda"


def _no_slurm() -> str:
    path = os.pathsep.join((os.environ["PATH"], *DAEMONS))
    missing = [name for name in ("sbatch", "slurmctld", "slurmd", "munged") if not shutil.which(name, path=path)]
    return f"no {', '.join(missing)} (Debian: slurm-wlm and munge)" if missing else ""


def _no_browser() -> str:
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"no {', '.join(missing)} (Debian: chromium and chromium-driver)" if missing else ""


def _no_spark() -> str:
    from dist_imsr.data.spark_session import missing_for_spark

    return missing_for_spark()


def _no_big_data() -> str:
    return "" if os.environ.get("DIST_IMSR_BIGDATA") else "DIST_IMSR_BIGDATA is not set"


_REASONS: dict[str, Callable[[], str]] = {
    "cuda": _no_cuda,
    "slurm": _no_slurm,
    "browser": _no_browser,
    "spark": _no_spark,
    "bigdata": _no_big_data,
}


# They start first: a worker that starts one of them at the end would keep the other one waiting.
_LONGEST = (
    *("launch/test_slurm.py", "test_docs.py", "training/test_checkpoint.py", "test_notebooks.py"),
    *("training/test_appended.py", "data/test_spark.py", "training/test_faults.py", "data/test_spark_cluster.py"),
    *("training/test_trainer.py", "comparison/test_compare.py", "report/test_browser.py", "strategies/test_sml.py"),
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives all files of tests/report to one worker: they share runs and a comparison, which take long to make."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return os.path.dirname(file) if "report/" in file else file

    return ByFile(config, log)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr != "cuda":
        early = "torch" in sys.modules and sys.modules["torch"].cuda.device_count()
        assert not early, "a conftest.py of a folder has initialized CUDA before: pass files, or select tests by -k"
        # The second is needed because DeepSpeed's launcher overwrites the first for its ranks.
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    """Each kind of device."""
    return str(request.param)


@pytest.fixture(autouse=True, scope="module")
def _close_shared_ranks() -> Iterator[None]:
    """Only tests of one module share ranks."""
    yield
    if "tests.ranks" in sys.modules:
        sys.modules["tests.ranks"].close_shared()


@pytest.fixture(autouse=True)
def _restore_rank_variables() -> Iterator[None]:
    """A command that runs in this process exports its rank, which commands of later tests would inherit."""
    names = RankInfo().environment
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {Path(__file__).parent / name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
    for mark, find_reason in _REASONS.items():
        marked = [item for item in items if item.get_closest_marker(mark)]
        reason = find_reason() if marked else ""
        if reason:
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))
