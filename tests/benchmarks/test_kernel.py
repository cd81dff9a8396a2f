import json
import os
import subprocess
import sys

import pytest
import torch

from dist_imsr.benchmarks import kernel
from dist_imsr.benchmarks.kernel import KernelBench
from dist_imsr.evaluation.counting import count_better
from dist_imsr.evaluation.launches import CANDIDATES
from launch.bench import main

TINY = ["--items", "70", "--dim", "8", "--users", "20", "--interests", "3", "--repeats", "2"]
PRODUCTS = ("fp32_product", "tf32_product", "bf16_product")


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    return KernelBench(items=70, dim=8, users=20, interests=3, repeats=2, device="cpu")


def test_figures(tmp_path):
    pytest.importorskip("triton", None if torch.cuda.is_available() else "3.7", reason="no triton, or an old one")
    path = tmp_path / "figures.json"
    # A process of its own, since Triton chooses its interpreter when first imported.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    interpreter = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "launch/bench.py", "kernel", *TINY, "--device", device, "--json", str(path)]
    subprocess.run(command, env=os.environ | interpreter, check=True)
    figures = {row["figure"]: row for row in json.loads(path.read_text())}
    counters = ["straightforward", *CANDIDATES]
    sides = [*PRODUCTS, *counters]
    assert set(figures) == {
        *(f"{side}_{what}" for side in sides for what in ("seconds", "flops_per_second")),
        *(f"{side}_flops_over_{product}" for side in counters for product in PRODUCTS),
    }
    assert all(row["runs"] == 2 and row["value"] > 0 for row in figures.values())
    assert figures["default_seconds"]["settings"]["launch"] == CANDIDATES["default"]._asdict()
    row = figures["default_flops_per_second"]
    assert row["max"] == pytest.approx(2 * 20 * 3 * 8 * 70 / figures["default_seconds"]["min"])


def test_counts_that_differ_are_refused(interpreted, monkeypatch):
    def wrong(targets, launch):
        return lambda: targets.compare_in_float64() + torch.eye(20)[3]

    monkeypatch.setattr(kernel, "_fused", wrong)
    with pytest.raises(RuntimeError, match="1 of 20 counts of default"):
        kernel.bench_kernel(interpreted)


def test_targets_have_many_ranks(interpreted):
    targets = kernel.draw_targets(interpreted)
    counts = targets.count_better(count_better)
    assert torch.equal(counts, targets.compare_in_float64())
    assert counts.min() < 5
    assert counts.max() > 20


@pytest.mark.parametrize(
    ("arguments", "key"), [(["--dim", "0"], "dim"), (["--device", "cpu"], "device"), (["--memory", "0"], "memory")]
)
def test_impossible_options_are_refused_in_one_line(arguments, key, capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    _refused([*TINY, *arguments], key, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_cuda_is_refused_in_one_line(capsys):
    _refused([], "a machine with a CUDA device", capsys)


def _refused(arguments, text, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["kernel", *arguments])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert errors.count("\n") == 1
    assert text in errors
