"""What the machine can do at most: copies inside its memory, copies to the device, and matrix products.

All ranks do the same at the same time, and their rates are summed: a ceiling of the machine under as many processes as
the figures beside it had. A run repeats what it measures until it takes a tenth of a second or so, and begins and ends
with waiting for the device, so that the launch of one kernel hides behind the work of the one before. Numbers are
random: zeros take less power, and so more clock.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_imsr import devices
from dist_imsr.benchmarks.clock import timed
from dist_imsr.benchmarks.report import Bound, Figure, Least
from dist_imsr.benchmarks.world import Device, settings_of, settle, world
from dist_imsr.checks import require, require_file
from dist_imsr.distributed.topology import Topology

COPY, TO_DEVICE = "copy_bytes_per_second", "pinned_to_device_bytes_per_second"
PRODUCT = "product_{}_flops_per_second"
_BLOCK = {"cpu": 256, "cuda": 2048}  # MiB: several times the last cache
_SIZE = {"cpu": 1024, "cuda": 8192}
_PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16")}
_RUN_SECONDS = 0.1  # beside which the barriers of a run are short


@dataclass(frozen=True)
class CeilingsBench:
    """Measures what the machine can do at most, which other figures are compared with.

    Args:
        block: MiB that are copied at a time; 0 for 256 on the host and 2048 on CUDA.
        size: rows and columns of the matrices that are multiplied; 0 for 1024 on the host and 8192 on CUDA.
        device: what ranks work on; auto is CUDA where there is a device.
        ranks: processes; 0 for two on the host, and for one on each device of CUDA.
        threads: of each process.
        repeats: runs of each ceiling.
        seed: of the numbers.
        json: where the figures are written as a list of objects.
    """

    block: int = 0
    size: int = 0
    device: Device = "auto"
    ranks: int = 0
    threads: int = 1
    repeats: int = 7
    seed: int = 0
    json: Path | None = None

    def __post_init__(self) -> None:
        settle(self)
        for key, defaults in (("block", _BLOCK), ("size", _SIZE)):
            require(getattr(self, key) >= 0, key, getattr(self, key), "at least 1, or 0")
            object.__setattr__(self, key, getattr(self, key) or defaults[self.device])
        require(self.threads >= 1, "threads", self.threads, "at least 1")
        require(self.repeats >= 1, "repeats", self.repeats, "at least 1")
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require_file(self.json, "json")


def bench_ceilings(options: CeilingsBench) -> list[Figure]:
    """Measures the ceilings of the machine.

    Args:
        options: the subcommand's.

    Returns:
        Bytes/s of a copy inside the device's memory, or the host's where that is the device, read and written bytes
        counted; on CUDA bytes/s from pinned memory of the host's to the device, counted once; multiplications and
        additions/s of products of square matrices in fp32 (IEEE), on CUDA in TF32, and in bf16.
    """
    sides = {COPY: ("bytes/s", 2 * options.block << 20)}
    if options.device == "cuda":
        sides[TO_DEVICE] = "bytes/s", options.block << 20
    sides |= {PRODUCT.format(one): ("flops/s", 2 * options.size**3) for one in _PRECISIONS[options.device]}
    figures = []
    with world(options) as ranks:
        ranks.call(_set_up, options)
        for name, (unit, each) in sides.items():
            ranks.call(_seconds, name, 1)  # what is first done is slow: memory, libraries' choices
            times = max(1, math.ceil(_RUN_SECONDS / max(ranks.call(_seconds, name, 1))))
            runs = [max(ranks.call(_seconds, name, times)) for _ in range(options.repeats)]
            rates = [options.ranks * times * each / seconds for seconds in runs]
            figures.append(Figure(name, unit, rates, settings_of(options)))
    return figures


def moved(size: float) -> Bound:
    """The bound of work that must read and write bytes of the device's memory.

    Args:
        size: bytes read and bytes written, of all ranks.

    Returns:
        The time of a copy that reads and writes as many.
    """
    return lambda rates: Least(COPY, size / rates[COPY])


def multiplied(flops: float, precision: str = "fp32") -> Bound:
    """The bound of work that is a matrix product.

    Args:
        flops: multiplications and additions, of all ranks.
        precision: ``fp32`` or ``ieee``, ``tf32`` or ``bf16``; ``bf16x3`` and ``tf32x3`` where three of these products
            are added up for one.

    Returns:
        The time of large square products of as many.
    """
    times, kind = 3 if precision.endswith("x3") else 1, precision.removesuffix("x3")
    figure = PRODUCT.format("fp32" if kind == "ieee" else kind)
    return lambda rates: Least(figure, times * flops / rates[figure])


class _Held:
    """What one rank copies and multiplies."""

    def __init__(self, topology: Topology, options: CeilingsBench) -> None:
        self.device = topology.device
        draw = torch.Generator(self.device).manual_seed(options.seed + topology.rank)
        self.source = torch.randn(options.block << 18, generator=draw, device=self.device)
        self.target = torch.zeros_like(self.source)
        # On the host itself, where nobody asks for it, this is no copy.
        self.pinned = devices.pin(self.source.cpu(), self.device)
        shape = options.size, options.size
        self.factors = [torch.randn(shape, generator=draw, device=self.device) for _ in range(2)]

    def act(self, name: str) -> Callable[[], Any]:
        """What is done once."""
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


_held: _Held  # of this rank's process


def _set_up(topology: Topology, options: CeilingsBench) -> None:
    global _held
    _held = _Held(topology, options)


def _seconds(topology: Topology, name: str, times: int) -> float:
    """Seconds until the slowest rank has done something so many times."""
    act = _held.act(name)

    def run() -> None:
        for _ in range(times):
            act()

    return timed(topology, run)[0]
