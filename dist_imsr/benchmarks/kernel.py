"""The CUDA kernel that counts ranks, launched in several ways, against bare matrix products and its twin in PyTorch.

Items and users are those of the ``rank`` benchmark. A user's target is the item that has a log-uniform place among
4,096 of them, so that ranks are log-uniform too, but for the very first ones.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from dist_imsr import devices
from dist_imsr.benchmarks.ceilings import multiplied
from dist_imsr.benchmarks.rank import RankBench, items_of, users_of
from dist_imsr.benchmarks.report import Figure, ratios
from dist_imsr.benchmarks.world import check_counts, settings_of
from dist_imsr.checks import require, require_file
from dist_imsr.evaluation.counting import count_better
from dist_imsr.evaluation.launches import CANDIDATES, Launch
from dist_imsr.evaluation.tiles import TIE, Pairs, Shard

_SAMPLE = 4096  # items among which targets are chosen


@dataclass(frozen=True)
class KernelBench:
    """Times the launches of the CUDA kernel that counts ranks.

    Args:
        items: rows of the table.
        dim: d.
        users: each with one target.
        interests: K of every user.
        memory: MiB for what the kernel copies and lists, and for a part of a product.
        repeats: runs of each side.
        seed: of the synthetic items, users and targets.
        device: cpu is for Triton's interpreter, with TRITON_INTERPRET=1, and for tiny sizes.
        json: where the figures are written as a list of objects.
    """

    items: int = 1_700_000
    dim: int = 64
    users: int = 10_000
    interests: int = 4
    memory: int = 1024
    repeats: int = 5
    seed: int = 0
    device: Literal["cuda", "cpu"] = "cuda"
    json: Path | None = None

    def __post_init__(self) -> None:
        check_counts(self)
        if self.device == "cuda":
            require(devices.device_count() > 0, "device", self.device, "a machine with a CUDA device")
        else:
            require(os.environ.get("TRITON_INTERPRET") == "1", "device", self.device, "cuda, or TRITON_INTERPRET=1")
        require_file(self.json, "json")


class _Asked(NamedTuple):
    """What all sides are asked: the arguments of `count_better`."""

    shard: Shard
    users: torch.Tensor  # [users, K, d]
    owners: torch.Tensor  # [users]
    items: torch.Tensor  # [users]
    scores: torch.Tensor  # [users]
    ties: torch.Tensor  # [users]
    excluded: Pairs


def bench_kernel(options: KernelBench) -> list[Figure]:
    """Measures every launch of the kernel.

    Args:
        options: the subcommand's.

    Returns:
        Seconds and FLOP/s of the bare products, of each launch and of the PyTorch version, where FLOP are those of the
        product alone; and the FLOP/s of the last two over those of each product.

    Raises:
        RuntimeError: if a launch counts otherwise than the PyTorch version.
    """
    asked = _asked(options)
    products: dict[str, Callable[[], None]] = {
        "fp32_product": lambda: _product(asked, torch.float32),
        "tf32_product": lambda: _product(asked, torch.float32, tf32=True),
        "bf16_product": lambda: _product(asked, torch.bfloat16),
    }
    counters: dict[str, Callable[[], torch.Tensor]] = {"pytorch": lambda: count_better(*asked)}
    counters |= {name: _fused(asked, launch) for name, launch in CANDIDATES.items()}
    # First of all, and so a warm-up of what is timed.
    wanted = counters["pytorch"]()
    for name, count in counters.items():
        differ = int((count() != wanted).sum())
        if differ:
            raise RuntimeError(f"{differ} of {len(wanted)} counts of {name} are not those of the PyTorch version")
    sides = products | counters
    rounds = [[_seconds(side, asked.users.device) for side in sides.values()] for _ in range(1 + options.repeats)][1:]
    seconds = dict(zip(sides, zip(*rounds, strict=True), strict=True))

    settings = settings_of(options)
    precisions = {name: name.removesuffix("_product") for name in products}
    flops = 2 * options.users * options.interests * options.dim * options.items
    figures = []
    for name, runs in seconds.items():
        setting = settings | {"launch": CANDIDATES[name]._asdict()} if name in CANDIDATES else settings
        precision = CANDIDATES[name].products if name in CANDIDATES else precisions.get(name, "fp32")
        figures.append(Figure(f"{name}_seconds", "s", runs, setting, multiplied(flops, precision)))
        figures.append(Figure(f"{name}_flops_per_second", "flops/s", [flops / one for one in runs], setting))
        if name in counters:
            figures += [
                Figure(f"{name}_flops_over_{product}", "ratio", ratios(seconds[product], runs), setting)
                for product in products
            ]
    return figures


def _asked(options: KernelBench) -> _Asked:
    names = ("items", "dim", "users", "interests", "seed")
    sizes = RankBench(**{name: getattr(options, name) for name in names}, top=1, ranks=1)
    table = items_of(sizes).to(options.device)
    users, _ = users_of(sizes, table)
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
    nothing = Pairs(items[:0], items[:0])
    shard = Shard(table, 0, memory=options.memory << 20)
    return _Asked(shard, users, torch.arange(options.users, device=table.device), items, scores, ties, nothing)


def _fused(asked: _Asked, launch: Launch) -> Callable[[], torch.Tensor]:
    from dist_imsr.evaluation import fused  # asks for Triton, which machines without CUDA need not have

    return lambda: fused.count_better(*asked, launch)


def _product(asked: _Asked, dtype: torch.dtype, tf32: bool = False) -> None:
    """The dot products and nothing else, for as many items at a time as memory holds."""
    users, items = asked.users.flatten(0, 1).to(dtype), asked.shard.weight.to(dtype)
    size = max(1, asked.shard.memory // (users.element_size() * len(users)))
    room = users.new_empty(len(users) * min(size, len(items)))
    with devices.matmul_precision(users.device, tf32):
        for part in items.split(size):
            torch.mm(users, part.T, out=room[: len(users) * len(part)].view(len(users), len(part)))


def _seconds(act: Callable[[], object], device: torch.device) -> float:
    begin = time.perf_counter()
    act()
    devices.synchronize(device)
    return time.perf_counter() - begin
