"""How the CUDA kernel that counts ranks multiplies and is launched; without Triton, which only CUDA machines need."""

from typing import Literal, NamedTuple

import torch

from dist_imsr import devices

Products = Literal["ieee", "tf32", "tf32x3", "bf16", "bf16x3"]


class Launch(NamedTuple):
    """Parameters of the kernel; none of them changes what it finds.

    The defaults are reasoned, for Hopper: a user, an item and an interest cost about 20 instructions of softmax, so
    products need not be the cheapest, but exact enough to leave few pairs to float64. bf16x3 leaves about as few as
    tf32x3, at half of its multiplications, shared memory and traffic with the L2 cache. A tile's products and three
    sums take 128 registers of a thread; two programs of 4 warps then share a multiprocessor, one multiplying while the
    other one does the softmax, and nothing spills.

    Args:
        products: how dot products are multiplied. Vectors are rounded to tf32 or bf16; ``x3`` keeps what that leaves
            off as second vectors and adds up the three products that matter. ``ieee`` needs no tensor cores.
        users: of a program's tile.
        items: of a program's tile; a multiple of 32.
        dims: multiplied at a time, at the most.
        warps: of a program.
        stages: of the users' vectors on their way to shared memory.
        programs: of a launch, about; so many that the last ones to end leave little of the device idle.
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
}  # what `bench.py kernel` compares


def launch_on(device: torch.device) -> Launch:
    """The parameters for a device.

    Args:
        device: a rank's.

    Returns:
        The default; those without tensor cores for devices before Ampere, which multiply neither bf16 nor tf32.
    """
    old = devices.is_cuda(device) and torch.cuda.get_device_capability(device) < (8, 0)
    return CANDIDATES["ieee"] if old else Launch()
