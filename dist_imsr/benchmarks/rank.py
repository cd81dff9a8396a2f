"""Ranks and best items over a synthetic catalogue, against the bare matrix product and against the full score tensor.

All sides take turns on the same ranks. The catalogue is made like one that ComiRec-DR was trained to on drifting data:
items' directions fill few of the dimensions evenly, their lengths are log-normal around 1.5, a user's interests are the
directions of items plus as much noise, with lengths just below 1. Dot products then spread by 0.5 or so, and an item's
largest one exceeds a target's score two to three times as often as its score does, as was seen in that model. Targets
have ranks that are log-uniform over the catalogue: a trained model finds many early, some late.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.nn.functional import normalize
from torchrec import JaggedTensor

from dist_imsr.benchmarks.ceilings import multiplied
from dist_imsr.benchmarks.clock import timed
from dist_imsr.benchmarks.report import Figure, ratios
from dist_imsr.benchmarks.world import Device, check_counts, settings_of, settle, world
from dist_imsr.checks import require, require_file
from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.distributed.host_memory import peak_bytes
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.launches import launch_on
from dist_imsr.evaluation.ranking import Ranker, RankingConfig
from dist_imsr.evaluation.tiles import Precision, Shard
from dist_imsr.model.interests import Interests

_FULL_TENSOR = 1 << 30  # bytes of the straightforward way's [users x interests x items]
_DRAWN_ROWS = 1 << 16  # items drawn at a time, so that the draws leave no peak behind
_LENGTH, _SPREAD = 1.5, 0.45  # of the items' log-normal lengths: the median, and the logarithm's deviation
_DECAY = 0.75  # coordinate j varies by j^-_DECAY
_PATIENCE = 3600.0  # seconds that one call of one side may take


@dataclass(frozen=True)
class RankBench:
    """Times exact ranks, first places and best items over a synthetic catalogue.

    Args:
        items: rows of the table.
        dim: d.
        users: over all ranks, each with one target.
        interests: K of every user.
        top: N of the best items and of the first places.
        precision: bf16 measures fp32 too, and refuses ranks that differ between them.
        memory: MiB of scores that a rank may hold.
        device: what ranks work on; auto is CUDA where there is a device.
        ranks: processes; 0 for two on the host, and for one on each device of CUDA.
        threads: of each process.
        repeats: runs of each side.
        seed: of the synthetic items, users and targets.
        json: where the figures are written as a list of objects.
    """

    items: int = 1_700_000
    dim: int = 64
    users: int = 512
    interests: int = 4
    top: int = 20
    precision: Precision = "bf16"
    memory: int = 256
    device: Device = "auto"
    ranks: int = 0
    threads: int = 1
    repeats: int = 5
    seed: int = 0
    json: Path | None = None

    def __post_init__(self) -> None:
        settle(self)
        check_counts(self)
        require(self.top <= self.items, "top", self.top, f"no more than items, {self.items}")
        require(self.users >= self.ranks, "users", self.users, f"at least one a rank, {self.ranks}")
        require_file(self.json, "json")


Asked = Literal["ranks", "first_places", "best"]
_ASKED: tuple[Asked, ...] = ("ranks", "first_places", "best")


def bench_rank(options: RankBench) -> list[Figure]:
    """Measures how near the ranker comes to the machine's limit, how far it is ahead, and what memory it takes.

    The ceiling of users/s is that of the users' dot products with all items as one large square product in the
    ranker's precision, on CUDA for ranks as the products that its kernel makes of each. It leaves out the softmax over
    interests, comparisons, the order of the best, and that these products are of d columns only;
    ``..._flops_over_matmul`` has the fp32 product of the same shapes in its place.

    Args:
        options: the subcommand's.

    Returns:
        Users/s of ranks, first places and best items; the fp32 product's time over that of ranks and of best items;
        users/s over those of the straightforward way, for best items and for ranks; peak bytes over the budget. Names
        end in ``_bf16`` where the ranker's products are bf16.

    Raises:
        RuntimeError: if bf16 finds other ranks than fp32, or the straightforward way other scores.
    """
    precisions: list[Precision] = ["fp32"] if options.precision == "fp32" else ["fp32", "bf16"]
    sides: list[tuple[str, ...]] = [("product",), ("straightforward", "ranks"), ("straightforward", "best")]
    sides += [(precision, asked) for precision in precisions for asked in _ASKED]
    with world(options, _PATIENCE) as ranks:
        ranks.call(_set_up, options)
        # First of all, and so a warm-up of what is timed.
        peaks = {precision: max(ranks.call(_peak_bytes, precision)) for precision in precisions}
        ranks.call(_seconds, "product")
        rounds = [[max(ranks.call(_seconds, *side)) for side in sides] for _ in range(options.repeats)]
        ranks.call(_check)
    seconds = dict(zip(sides, zip(*rounds, strict=True), strict=True))

    settings = settings_of(options)
    flops = 2 * options.users * options.interests * options.dim * options.items
    product = [flops / s for s in seconds["product",]]
    figures = [Figure("matmul_flops_per_second", "flops/s", product, settings, multiplied(1))]
    for precision in precisions:
        suffix, setting = "" if precision == "fp32" else f"_{precision}", settings | {"precision": precision}
        exact, first, best = (seconds[precision, asked] for asked in _ASKED)
        counted = launch_on(torch.device("cuda")).products if options.device == "cuda" else precision
        bounds = {
            "ranker_users_per_second": multiplied(flops / options.users, counted),
            "best_users_per_second": multiplied(flops / options.users, precision),
        }
        figures += [
            Figure(f"{name}{suffix}", unit, runs, setting, bounds.get(name))
            for name, unit, runs in (
                ("ranker_users_per_second", "users/s", [options.users / s for s in exact]),
                ("first_places_users_per_second", "users/s", [options.users / s for s in first]),
                ("best_users_per_second", "users/s", [options.users / s for s in best]),
                ("ranker_flops_over_matmul", "ratio", ratios(seconds["product",], exact)),
                ("best_flops_over_matmul", "ratio", ratios(seconds["product",], best)),
                ("ranker_users_per_second_over_straightforward", "ratio", ratios(seconds[sides[2]], best)),
                ("ranks_users_per_second_over_straightforward", "ratio", ratios(seconds[sides[1]], exact)),
                ("ranker_peak_bytes_over_budget", "ratio", [peaks[precision] / (options.memory << 20)]),
            )
        ]
    return figures


class _Held:
    """What one rank measures with: the table, its shard, and its own users with their targets."""

    def __init__(self, topology: Topology, options: RankBench) -> None:
        self.options, self.topology = options, topology
        self.table = items_of(options).to(topology.device)
        self.catalogue = Catalogue(CatalogueConfig(headroom=0.0), [options.items], options.dim, 0, topology)
        rows = self.catalogue.rows
        known = self.table[rows.start : rows.stop]
        self.catalogue.flushed_weight()[: len(known)] = known
        vectors, wanted = users_of(options, self.table)
        self.everybody = vectors.flatten(0, 1)
        mine = slice(topology.rank, None, topology.world_size)
        self.interests = Interests(vectors[mine], torch.ones_like(vectors[mine, :, 0], dtype=torch.bool))
        self.targets = self._targets(wanted[mine])
        self.found: dict[tuple[str, ...], torch.Tensor] = {}

    def run(self, side: str, asked: Asked = "best") -> None:
        """Runs one side once and keeps what it found."""
        if side == "product":
            self._product()
        elif side == "straightforward":
            self.found[side, asked] = self._straightforward(asked)
        else:
            self.found[side, asked] = self._ranker(side, asked)  # type: ignore[arg-type]

    def check(self) -> None:
        """Refuses answers that differ between the sides."""
        exact = self.found["fp32", "ranks"]
        lower = self.found.get(("bf16", "ranks"), exact)
        if not torch.equal(exact, lower):
            raise RuntimeError(f"{int((exact != lower).sum())} of {len(exact)} ranks differ between fp32 and bf16")
        torch.testing.assert_close(
            self.found["fp32", "best"], self.found["straightforward", "best"], rtol=1e-4, atol=1e-5
        )

    def _targets(self, wanted: torch.Tensor) -> torch.Tensor:
        """The item that has the wanted rank with each user."""
        places = (len(self.table) + 1 - wanted).split(self._at_once)
        return torch.stack(
            [
                _place(one, place)
                for scores, part in zip(self._scores(), places, strict=True)
                for one, place in zip(scores, part.tolist(), strict=True)
            ]
        )

    def _ranker(self, precision: Precision, asked: Asked) -> torch.Tensor:
        options = self.options
        ranker = Ranker(self.catalogue, self.topology, "attentive", RankingConfig(precision, options.memory))
        if asked == "best":
            return ranker.best(self.interests, options.items, options.top)[0]
        targets = JaggedTensor(self.targets, lengths=torch.ones_like(self.targets))
        most = None if asked == "ranks" else options.top
        return ranker.ranks(self.interests, targets, self.table[self.targets], options.items, most)

    def _product(self) -> None:
        """The shard's dot products and nothing else, in stretches of as many items as the ranker takes."""
        shard = Shard(self.catalogue.flushed_weight(), 0, memory=self.options.memory << 20)
        users = min(self.options.users, shard.max_users(self.options.interests))
        size = max(1, shard.tile_size // (users * self.options.interests))
        room = self.everybody.new_empty(len(self.everybody) * size)
        for items in shard.weight.split(size):
            out = room[: len(self.everybody) * len(items)].view(len(self.everybody), len(items))
            torch.mm(self.everybody, items.T, out=out)

    def _straightforward(self, asked: Asked) -> torch.Tensor:
        """What is usually written: every score, then topk or a comparison."""
        if asked == "best":
            return torch.cat([scores.topk(self.options.top).values for scores in self._scores()])
        targets = self.targets.unsqueeze(1).split(self._at_once)
        parts = zip(self._scores(), targets, strict=True)
        return torch.cat([1 + (scores > scores.gather(1, own)).sum(1) for scores, own in parts])

    @property
    def _at_once(self) -> int:
        """Users of a full score tensor."""
        return max(1, _FULL_TENSOR // (4 * self.options.interests * self.options.items))

    def _scores(self) -> Iterator[torch.Tensor]:
        """Scores ``[b, items]`` of this rank's users, some at a time."""
        for vectors in self.interests.vectors.split(self._at_once):
            agreement = vectors @ self.table.T
            yield (agreement.softmax(1) * agreement).sum(1)


_held: _Held  # of this rank's process


def _set_up(topology: Topology, options: RankBench) -> None:
    global _held
    _held = _Held(topology, options)


def _seconds(topology: Topology, *side: str) -> float:
    """Seconds until the slowest rank has run a side."""
    return timed(topology, _held.run, *side)[0]


def _peak_bytes(topology: Topology, precision: Precision) -> int:
    """How far memory grows above what is held before, while all is asked."""
    before = peak_bytes(topology.device, reset=True)
    for asked in _ASKED:
        _held.run(precision, asked)
    return peak_bytes(topology.device) - before


def _check(topology: Topology) -> None:
    _held.check()


def items_of(options: RankBench) -> torch.Tensor:
    """The catalogue, the same on every rank.

    Args:
        options: its size and seed.

    Returns:
        ``[items, d]`` float32.
    """
    draw = torch.Generator().manual_seed(options.seed)
    table = torch.empty(options.items, options.dim)
    for part in table.split(_DRAWN_ROWS):
        lengths = _LENGTH * torch.exp(_SPREAD * torch.randn(len(part), 1, generator=draw))
        part.copy_(lengths * _directions(len(part), options.dim, draw))
    return table


def users_of(options: RankBench, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Interests, and the ranks that targets should have, the same on every rank.

    Args:
        options: their sizes and seed.
        table: of `items_of`.

    Returns:
        ``[users, K, d]`` float32 and ``[users]`` int64, on the table's device.
    """
    draw = torch.Generator().manual_seed(options.seed + 1)
    shape = options.users, options.interests
    liked = normalize(table[torch.randint(options.items, shape, generator=draw).to(table.device)], dim=-1)
    noise = _directions(options.users * options.interests, options.dim, draw).view_as(liked).to(table.device)
    lengths = 1 - 0.1 * torch.rand(*shape, 1, generator=draw)
    ranks = torch.exp(math.log(options.items) * torch.rand(options.users, generator=draw)).long()
    return normalize(liked + noise, dim=-1) * lengths.to(table.device), ranks.clamp(1, options.items)


def _place(scores: torch.Tensor, place: int) -> torch.Tensor:
    """The item ``[]`` whose score is the one at a place, counted from the lowest."""
    if scores.is_cuda:  # where kthvalue leaves all but one multiprocessor idle
        return scores.sort().indices[place - 1]
    return scores.kthvalue(place).indices


def _directions(count: int, dim: int, draw: torch.Generator) -> torch.Tensor:
    """Vectors of length 1, the earlier coordinates the larger ones."""
    return normalize(torch.randn(count, dim, generator=draw) * torch.arange(1, dim + 1) ** -_DECAY, dim=1)
