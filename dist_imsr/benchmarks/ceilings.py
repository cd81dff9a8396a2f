"""The machine's limits: copies inside its memory, copies to the device, and matrix products.

All ranks work at the same time, and their rates are summed: the limit of the machine with as many processes as the
figures that are compared with it. A run repeats its operation for about a tenth of a second between two
synchronisations of the device, which hides the launch of single kernels. Numbers are random, as zeros take less power
and so run at a higher clock.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from dist_imsr import devices
from dist_imsr.benchmarks.options import MAY_BE_ZERO, WorldOptions
from dist_imsr.benchmarks.report import Bound, Figure, Floor
from dist_imsr.benchmarks.world import World
from dist_imsr.distributed.topology import Topology

COPY, TO_DEVICE = "copy_bytes_per_second", "pinned_to_device_bytes_per_second"
PRODUCT = "product_{}_flops_per_second"
_BLOCK = {"cpu": 256, "cuda": 2048}  # MiB: several times the last cache
_SIZE = {"cpu": 1024, "cuda": 8192}
_PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16")}
_RUN_SECONDS = 0.1  # long against a run's barriers


@dataclass(frozen=True, kw_only=True)
class CeilingsBench(WorldOptions):
    """Measures the machine's limits, which other figures are compared with.

    Args:
        block: MiB copied at a time; 0 for 256 on the host and 2048 on CUDA.
        size: rows and columns of the multiplied matrices; 0 for 1024 on the host and 8192 on CUDA.
        repeats: runs of each ceiling.
        seed: of the numbers.
    """

    block: int = field(default=0, metadata=MAY_BE_ZERO)
    size: int = field(default=0, metadata=MAY_BE_ZERO)
    repeats: int = 7
    seed: int = field(default=0, metadata=MAY_BE_ZERO)

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, defaults in (("block", _BLOCK), ("size", _SIZE)):
            object.__setattr__(self, key, getattr(self, key) or defaults[self.device])


def bench_ceilings(options: CeilingsBench) -> list[Figure]:
    """Measures the ceilings of the machine.

    Returns:
        Bytes/s of a copy inside the device's memory, or the host's where that is the device, with bytes read and bytes
        written counted; on CUDA bytes/s from the host's pinned memory to the device, counted once; FLOP/s of products
        of square matrices in fp32 (IEEE), on CUDA in TF32, and in bf16.
    """
    operations = {COPY: ("bytes/s", 2 * options.block << 20)}
    if options.device == "cuda":
        operations[TO_DEVICE] = "bytes/s", options.block << 20
    operations |= {PRODUCT.format(one): ("flops/s", 2 * options.size**3) for one in _PRECISIONS[options.device]}
    figures = []
    with World(options) as world:
        workers = world.start(CeilingsWorker, options)
        for name, (unit, each) in operations.items():
            workers.call(CeilingsWorker.choose, name)
            workers.call(CeilingsWorker.run, 1)  # allocates memory and lets libraries choose their kernels
            times = max(1, math.ceil(_RUN_SECONDS / workers.seconds(CeilingsWorker.run, 1)))
            runs = [workers.seconds(CeilingsWorker.run, times) for _ in range(options.repeats)]
            rates = [options.ranks * times * each / seconds for seconds in runs]
            figures.append(Figure(name, unit, rates, options.settings))
    return figures


def copy_bound(size: float) -> Bound:
    """The bound of work that must read and write so many bytes of the device's memory, those of all ranks together."""
    return lambda rates: Floor(COPY, size / rates[COPY])


def matmul_bound(flops: float, precision: str = "fp32") -> Bound:
    """The bound of work that is a matrix product: the time of large square products with as many operations.

    Args:
        flops: multiplications and additions, of all ranks together.
        precision: ``fp32`` or ``ieee``, ``tf32`` or ``bf16``; ``bf16x3`` and ``tf32x3`` where three such products are
            summed up for one.
    """
    times, kind = 3 if precision.endswith("x3") else 1, precision.removesuffix("x3")
    figure = PRODUCT.format("fp32" if kind == "ieee" else kind)
    return lambda rates: Floor(figure, times * flops / rates[figure])


class CeilingsWorker:
    """One rank's blocks and matrices."""

    def __init__(self, topology: Topology, options: CeilingsBench) -> None:
        self.device = topology.device
        draw = torch.Generator(self.device).manual_seed(options.seed + topology.rank)
        self.source = torch.randn(options.block << 18, generator=draw, device=self.device)
        self.target = torch.zeros_like(self.source)
        self.pinned = devices.pin(self.source.cpu(), self.device)
        shape = options.size, options.size
        self.factors = [torch.randn(shape, generator=draw, device=self.device) for _ in range(2)]

    def choose(self, name: str) -> None:
        """Prepares the operation that `run` repeats."""
        self._operation = self._operation_of(name)

    def run(self, times: int) -> None:
        """Repeats the chosen operation."""
        for _ in range(times):
            self._operation()

    def _operation_of(self, name: str) -> Callable[[], Any]:
        if name == COPY:
            return lambda: self.target.copy_(self.source)
        if name == TO_DEVICE:
            return lambda: self.target.copy_(self.pinned, non_blocking=True)
        one, other = (each.bfloat16() if "bf16" in name else each for each in self.factors)
        product = torch.empty_like(one)

        def multiply() -> None:
            with devices.matmul_precision(self.device, tf32="tf32" in name):
                torch.mm(one, other, out=product)

        return multiply
