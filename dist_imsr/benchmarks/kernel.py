"""Launches of the CUDA kernel that counts ranks, against bare matrix products and the straightforward way.

Items and users are those of the ``rank`` benchmark. A user's target is the item at a log-uniform place among 4,096
items, so that ranks are log-uniform too, except for the very first ones.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple

import torch

from dist_imsr import devices
from dist_imsr.benchmarks.ceilings import matmul_bound
from dist_imsr.benchmarks.options import MAY_BE_ZERO, Options
from dist_imsr.benchmarks.report import Figure, ratios
from dist_imsr.benchmarks.synthetic import draw_items, draw_users
from dist_imsr.benchmarks.world import take_turns
from dist_imsr.checks import require
from dist_imsr.evaluation.launches import CANDIDATES, Launch
from dist_imsr.evaluation.tiles import TIE, Pairs, Shard, reduce_interests

_SAMPLE = 4096  # items that targets are chosen from


@dataclass(frozen=True, kw_only=True)
class KernelBench(Options):
    """Times the launches of the CUDA kernel that counts ranks.

    Args:
        items: rows of the table.
        dim: d.
        users: each with one target.
        interests: K of every user.
        memory: MiB for the kernel's copies and lists, and for a part of a product.
        repeats: runs of each side.
        seed: of the synthetic items, users and targets.
        device: cpu is for Triton's interpreter, with TRITON_INTERPRET=1, and for tiny sizes.
    """

    items: int = 1_700_000
    dim: int = 64
    users: int = 10_000
    interests: int = 4
    memory: int = 1024
    repeats: int = 5
    seed: int = field(default=0, metadata=MAY_BE_ZERO)
    device: Literal["cuda", "cpu"] = "cuda"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device == "cuda":
            require(devices.device_count() > 0, "device", self.device, "a machine with a CUDA device")
        else:
            require(os.environ.get("TRITON_INTERPRET") == "1", "device", self.device, "cuda, or TRITON_INTERPRET=1")


class Targets(NamedTuple):
    """The inputs of `count_better`: users with one target each, and the shard that they are ranked in."""

    shard: Shard
    users: torch.Tensor  # [users, K, d]
    owners: torch.Tensor  # [users]
    items: torch.Tensor  # [users]
    scores: torch.Tensor  # [users]
    ties: torch.Tensor  # [users]
    excluded: Pairs

    def count_better(self, kernel: Callable[..., torch.Tensor], **launch: Launch) -> torch.Tensor:
        """The number of items that beat each target, by the CUDA kernel or `counting.count_better`."""
        return kernel(self.shard, self.users, self.owners, self.items, self.scores, self.ties, self.excluded, **launch)

    def compare_in_float64(self) -> torch.Tensor:
        """The number of items that beat each target, from every score."""
        low, high = (self.scores - self.ties).unsqueeze(1), (self.scores + self.ties).unsqueeze(1)
        better = torch.zeros_like(self.scores, dtype=torch.float64)
        users = self.users.double()
        size = max(1, self.shard.memory // (4 * users.element_size() * len(users) * users.shape[1]))
        for items in self.shard.weight.split(size):
            scores = reduce_interests(users @ items.double().T, self.shard.how)
            better += ((scores > high).double() + (scores >= low).double()).sum(1) / 2
        return better - 0.5  # a target ties with itself

    def product(self, dtype: torch.dtype, tf32: bool = False) -> None:
        """The dot products alone, for as many items at a time as memory holds."""
        users, items = self.users.flatten(0, 1).to(dtype), self.shard.weight.to(dtype)
        size = max(1, self.shard.memory // (users.element_size() * len(users)))
        room = users.new_empty(len(users) * min(size, len(items)))
        with devices.matmul_precision(users.device, tf32):
            for part in items.split(size):
                torch.mm(users, part.T, out=room[: len(users) * len(part)].view(len(users), len(part)))


def bench_kernel(options: KernelBench) -> list[Figure]:
    """Measures every launch of the kernel.

    Returns:
        Seconds and FLOP/s of the bare products, of each launch and of the straightforward way, where FLOP are those of
        the product alone; and the FLOP/s of the last two over those of each product.

    Raises:
        RuntimeError: if a launch counts otherwise than the straightforward way.
    """
    targets = draw_targets(options)
    products: dict[str, Callable[[], None]] = {
        "fp32_product": partial(targets.product, torch.float32),
        "tf32_product": partial(targets.product, torch.float32, tf32=True),
        "bf16_product": partial(targets.product, torch.bfloat16),
    }
    counters: dict[str, Callable[[], torch.Tensor]] = {"straightforward": targets.compare_in_float64}
    counters |= {name: _fused(targets, launch) for name, launch in CANDIDATES.items()}
    # This check is also the warm-up.
    expected = counters["straightforward"]()
    for name, count in counters.items():
        differ = int((count() != expected).sum())
        if differ:
            raise RuntimeError(f"{differ} of {len(expected)} counts of {name} are not those of the straightforward way")
    sides: dict[str, Callable[[], object]] = {**products, **counters}
    clocks = [partial(_seconds, side, targets.users.device) for side in sides.values()]
    take_turns(1, *clocks)
    seconds = dict(zip(sides, take_turns(options.repeats, *clocks), strict=True))

    precisions = {name: name.removesuffix("_product") for name in products}
    precisions |= {name: launch.products for name, launch in CANDIDATES.items()}
    flops = 2 * options.users * options.interests * options.dim * options.items
    figures = []
    for name, runs in seconds.items():
        settings = options.settings | ({"launch": CANDIDATES[name]._asdict()} if name in CANDIDATES else {})
        bound = matmul_bound(flops, precisions.get(name, "fp32"))
        figures.append(Figure(f"{name}_seconds", "s", runs, settings, bound))
        figures.append(Figure(f"{name}_flops_per_second", "flops/s", [flops / one for one in runs], settings))
        for product in products if name in counters else ():
            over = ratios(seconds[product], runs)
            figures.append(Figure(f"{name}_flops_over_{product}", "ratio", over, settings))
    return figures


def draw_targets(options: KernelBench) -> Targets:
    """Synthetic users with targets whose ranks are about log-uniform."""
    table = draw_items(options.items, options.dim, options.seed).to(options.device)
    users, _ = draw_users(table, options.users, options.interests, options.seed)
    sample = table[:_SAMPLE]
    draw = torch.Generator().manual_seed(options.seed + 2)
    places = torch.exp(math.log(len(sample)) * torch.rand(options.users, generator=draw)).long() - 1
    parts = []
    for vectors, place in zip(users.split(1024), places.to(options.device).split(1024), strict=True):
        agreement = vectors @ sample.T
        scores, order = (agreement.softmax(1) * agreement).sum(1).sort(dim=1, descending=True)
        parts.append((scores.gather(1, place.unsqueeze(1)), order.gather(1, place.unsqueeze(1))))
    scores, items = (torch.cat(column).squeeze(1) for column in zip(*parts, strict=True))
    ties = TIE * users.norm(dim=-1).amax(1) * table[items].norm(dim=1)
    shard, owners = Shard(table, 0, memory=options.memory << 20), torch.arange(options.users, device=table.device)
    return Targets(shard, users, owners, items, scores, ties, excluded=Pairs(items[:0], items[:0]))


def _fused(targets: Targets, launch: Launch) -> Callable[[], torch.Tensor]:
    from dist_imsr.evaluation import fused  # needs Triton, which machines without CUDA may lack

    return partial(targets.count_better, fused.count_better, launch=launch)


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    function()
    devices.synchronize(device)
    return time.perf_counter() - begin
