"""The kernel compiled for Hopper; no device is needed."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from dist_imsr.evaluation import tiles
from dist_imsr.evaluation.launches import CANDIDATES, Launch

triton = pytest.importorskip("triton", reason="no triton")
if not (Path(triton.__file__).parent / "backends/nvidia/bin/ptxas").exists():
    pytest.skip("this triton brings no ptxas", allow_module_level=True)

INTEGERS = ("room", "users", "steps", "interests", "turns")
NUMBERS = ("counts", "first", "own", "twice", "words", "found")


def _compiled(launch, dim=64, how="attentive"):
    """The kernel for sm_90."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dist_imsr.evaluation import fused
    from dist_imsr.evaluation.count_kernel import count_kernel

    one, several = torch.zeros(1), torch.zeros(1, 4, dim)
    targets = fused._sort_targets(one.long(), one.long(), one, one)
    counter = fused._Counter(tiles.Shard(several[0], 0, how), several, targets, launch)
    names, constants = count_kernel.arg_names, counter.constants
    rounded = "*bf16" if launch.products.startswith("bf16") else "*fp32"
    kinds = dict.fromkeys(constants, "constexpr") | dict.fromkeys(INTEGERS, "i32") | dict.fromkeys(NUMBERS, "*i32")
    kinds |= dict.fromkeys(("vectors", "weight"), rounded)
    signature = {name: kinds.get(name, "*fp32") for name in names}
    aligned = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(names) if "*" in signature[name]}
    return triton.compile(
        ASTSource(count_kernel, signature, constants, aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )


def _tool(name, *arguments):
    path = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    """Uses no kernel from an earlier compilation."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("name", CANDIDATES)
def test_candidates_use_the_tensor_cores(name):
    launch = CANDIDATES[name]
    compiled = _compiled(launch)
    wanted = {"ieee": None, "tf32": "tf32.tf32", "bf16": "bf16.bf16"}[launch.products.removesuffix("x3")]
    found = set(re.findall(r"wgmma\.mma_async\S*?\.f32\.(\w+\.\w+)", compiled.asm["ptx"]))
    assert found == ({wanted} if wanted else set())
    assert compiled.metadata.shared <= 227 << 10  # of a multiprocessor


@pytest.mark.parametrize(("dim", "how"), [(64, "attentive"), (64, "max"), (36, "attentive"), (256, "attentive")])
def test_the_default_spills_nothing_and_shares_a_multiprocessor(dim, how, tmp_path):
    compiled = _compiled(Launch(), dim, how)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = dict(re.findall(r"(\w+):(\d+)", _tool("cuobjdump", "--dump-resource-usage", cubin)))
    assert usage["STACK"] == usage["LOCAL"] == "0"
    assert 2 * 32 * Launch().warps * int(usage["REG"]) <= 1 << 16
    assert 2 * (compiled.metadata.shared + (1 << 10)) <= 228 << 10
    machine = _tool("cuobjdump", "-sass", cubin)
    assert re.search(r"\bHGMMA\.64x64x16\.F32\.BF16", machine)
    assert not re.search(r"\b(LDL|STL)\b", machine)
