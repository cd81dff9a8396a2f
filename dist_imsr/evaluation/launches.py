"""Launch parameters of the CUDA kernel that counts ranks; does not import Triton, which only CUDA machines need."""

from typing import Literal, NamedTuple

import torch

from dist_imsr import devices

Products = Literal["ieee", "tf32", "tf32x3", "bf16", "bf16x3"]


class Launch(NamedTuple):
    """Launch parameters of the kernel; none of them changes its results.

    The defaults are chosen for Hopper by reasoning: the softmax costs about 20 instructions per user, item and
    interest, so products need not be the cheapest, but precise enough to leave few pairs to float64. bf16x3 leaves
    about as few as tf32x3, with half of its multiplications, shared memory and L2 traffic. A tile's products and three
    sums take 128 registers per thread; two programs of 4 warps then share a multiprocessor without spilling, and one
    multiplies while the other computes the softmax.

    Args:
        products: how dot products are computed. Vectors are rounded to tf32 or bf16; ``x3`` also keeps the rounding
            errors as second vectors and adds up the three largest products. ``ieee`` needs no tensor cores.
        users: users per tile.
        items: items per tile; a multiple of 32.
        dims: the most dimensions multiplied at a time.
        warps: warps per program.
        stages: pipeline stages of loading the users' vectors into shared memory.
        programs: programs per launch, approximately; enough to keep the device busy until the end.
    """

    products: Products = "bf16x3"
    users: int = 64
    items: int = 64
    dims: int = 64
    warps: int = 4
    stages: int = 3
    programs: int = 8192


CANDIDATES = {
    "default": Launch(),
    "bf16x3_128x64": Launch(users=128, warps=8),
    "bf16x3_64x32": Launch(items=32),
    "bf16x3_64x128": Launch(items=128, warps=8),
    "bf16x3_2_stages": Launch(stages=2),
    "bf16x3_8_warps": Launch(warps=8),
    "bf16": Launch("bf16"),
    "tf32x3": Launch("tf32x3", stages=2),
    "tf32x3_8_warps": Launch("tf32x3", warps=8, stages=2),
    "tf32": Launch("tf32"),
    "ieee": Launch("ieee", dims=32, warps=8, stages=2),
}  # compared by `bench.py kernel`


def launch_on(device: torch.device) -> Launch:
    """The default parameters, or ``ieee`` for devices before Ampere, whose tensor cores lack bf16 and tf32."""
    old = devices.is_cuda(device) and torch.cuda.get_device_capability(device) < (8, 0)
    return CANDIDATES["ieee"] if old else Launch()
