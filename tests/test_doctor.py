"""The doctor finds each kind of mismatch, broken library and silent rank, and passes a working installation."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dist_imsr import doctor, probes

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

CPU = dict.fromkeys(doctor.PACKAGES, "1.0.0") | {
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "fbgemm-gpu-cpu": "1.8.0",
    "torchrec": "1.8.0",
    "torchmetrics": "1.0.3",
}
del CPU["fbgemm-gpu"]
CUDA = {name: version for name, version in CPU.items() if name != "fbgemm-gpu-cpu"} | {
    "torch": "2.13.0+cu130",
    "fbgemm-gpu": "1.8.0",
}
OLDER_CUDA = CUDA | {"python": "3.12.3", "torch": "2.11.0+cu130", "fbgemm-gpu": "1.6.0", "torchrec": "1.6.1"}


def without(versions: dict[str, str], package: str) -> dict[str, str]:
    return {name: version for name, version in versions.items() if name != package}


@pytest.mark.parametrize("versions", [CPU, CUDA, CUDA | {"torch": "2.13.0"}, OLDER_CUDA], ids=str)
def test_matching_versions_give_no_finding(versions):
    assert doctor.mismatches(versions, {"torchmetrics": "1.0.3"}) == []


@pytest.mark.parametrize(
    ("versions", "problem", "fix"),
    [
        (CPU | {"python": "3.13.0"}, "Python 3.13.0", "PYTHON="),
        (CPU | {"python": "3.10.9"}, "Python 3.10.9", "PYTHON="),
        (CPU | {"torch": "2.12.0+cpu"}, "torch 2.12.0+cpu is in no combination", "make clean setup"),
        (CPU | {"torch": "2.11.0+cpu", "fbgemm-gpu-cpu": "1.6.0"}, "torchrec 1.8.0 does not match", "torchrec==1.6.1"),
        (CPU | {"torchrec": "1.9.2"}, "torchrec 1.9.2 does not match torch 2.13.0+cpu", "torchrec==1.8.0"),
        (CPU | {"fbgemm-gpu-cpu": "1.7.0"}, "fbgemm-gpu-cpu 1.7.0 does not match", "fbgemm-gpu-cpu==1.8.0"),
        (OLDER_CUDA | {"fbgemm-gpu": "1.8.0"}, "fbgemm-gpu 1.8.0 does not match", "fbgemm-gpu==1.6.0"),
        (CPU | {"fbgemm-gpu": "1.8.0"}, "both installed", "uninstall --yes fbgemm-gpu fbgemm-gpu-cpu"),
        (CPU | {"torch": "2.13.0+cu130"}, "is the CUDA build and fbgemm-gpu-cpu", "--no-deps fbgemm-gpu==1.8.0"),
        (CUDA | {"torch": "2.13.0+cpu"}, "is the CPU build and fbgemm-gpu", "--no-deps fbgemm-gpu-cpu==1.8.0"),
        (CPU | {"torchmetrics": "1.4.0"}, "torchmetrics 1.4.0 is installed, but 1.0.3 is", "torchmetrics==1.0.3"),
        (CPU | {"duckdb": "2.1.0"}, "duckdb 2.1.0 is installed, but 1.0.0 is", "duckdb==1.0.0"),
        (without(CPU, "torch"), "torch is not installed", "make clean setup"),
        (without(CPU, "fbgemm-gpu-cpu"), "fbgemm-gpu-cpu is not installed", "make clean setup"),
        (without(CPU, "rich"), "rich is not installed", "make clean setup"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_a_mismatch_is_found_once_with_its_fix(versions, problem, fix):
    [finding] = doctor.mismatches(versions, {"torchmetrics": "1.0.3", "duckdb": "1.0.0"})
    assert problem in finding.problem
    assert fix in finding.fix
    assert "\n" not in finding.problem + finding.fix


def test_several_mismatches_are_all_found():
    versions = without(CPU, "deepspeed") | {"python": "3.13.0", "torchrec": "1.6.1"}
    assert len(doctor.mismatches(versions, {"torchmetrics": "1.1.0"})) == 4


@pytest.mark.parametrize(
    ("extra", "pair"), [("cpu", doctor.PAIRS[0]), ("cuda", doctor.PAIRS[0]), ("cuda-torch211", doctor.PAIRS[1])]
)
def test_the_pins_of_the_extras_are_the_pairs(extra, pair):
    pins = dict(pin.split("==") for pin in PYPROJECT["optional-dependencies"][extra])
    fbgemm = "fbgemm-gpu-cpu" if extra == "cpu" else "fbgemm-gpu"
    assert pins.get("torchrec", pair.torchrec) == pair.torchrec
    assert (pins["torch"], pins[fbgemm]) == (pair.torch, pair.fbgemm)


def test_every_dependency_is_examined_and_pinned():
    names = {pin.split("==")[0].split("[")[0] for pin in PYPROJECT["dependencies"]}
    assert names <= set(doctor.PACKAGES)
    assert all("==" in pin for pin in PYPROJECT["dependencies"])


def test_pins_are_read_from_installed_packages(monkeypatch):
    requirements = {
        "torchrec": ["fbgemm-gpu", "torchmetrics==1.0.3"],
        "dist-imsr": ["jsonargparse[signatures]==4.53.0", 'mypy==2.4.1; extra == "test"'],
    }
    monkeypatch.setattr(importlib.metadata, "requires", requirements.get)
    assert doctor.pinned() == {"torchmetrics": "1.0.3", "jsonargparse": "4.53.0"}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Shadows an installed package."""

    def put(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    return put


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("raise ImportError('libcudart.so.13: cannot open shared object file')", "ImportError: libcudart.so.13"),
        ("import os; os.abort()", "died of signal 6"),
        ("import time; time.sleep(60)", "no answer within 1 s"),
        ("", "has no attribute"),
    ],
)
def test_a_library_that_does_not_work_is_reported(broken, source, error):
    broken("duckdb", source)
    report = doctor.examine_library("duckdb", limit=1 if "sleep" in source else 60)
    [finding] = report.findings
    assert "duckdb does not work" in finding.problem
    assert error in finding.problem
    assert finding.fix == "make clean setup"


@pytest.mark.parametrize("name", list(probes.LIBRARIES))
def test_every_library_works_here(name):
    report = doctor.examine_library(name)
    assert report.findings == []
    assert f"{name} runs" in report.facts


def test_the_all_to_all_moves_data():
    assert doctor.check_all_to_all(world_size=2) == [[0, 10], [1, 11]]


def test_a_failing_rank_is_named(broken):
    broken("torch", "raise ImportError('no torch here')")
    with pytest.raises(RuntimeError, match="rank 0: ImportError: no torch here"):
        doctor.check_all_to_all()


def run_doctor() -> "subprocess.CompletedProcess[str]":
    script = str(ROOT / "launch" / "doctor.py")
    return subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240, cwd="/")


def test_the_script_passes_here():
    result = run_doctor()
    assert result.returncode == 0, result.stdout + result.stderr
    for expected in ("torchrec", "devices", "gloo", "threads", "[[0, 10], [1, 11]]", "Everything works."):
        assert expected in result.stdout


def test_the_script_survives_broken_packages_and_fails(broken):
    broken("torch", "raise ImportError('undefined symbol')")
    broken("rich", "raise ImportError('no rich here')")
    result = run_doctor()
    assert result.returncode == 1, result.stderr
    assert "PROBLEM: torch does not work: ImportError: undefined symbol" in result.stdout
    assert "fix: make clean setup" in result.stdout
    assert "gloo all-to-all failed" in result.stdout
    assert "duckdb runs" in result.stdout
