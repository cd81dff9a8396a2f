"""Exact ranks and best items over a synthetic catalogue, against the bare matrix product and the full score tensor.

All sides take turns on the same ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch.nn.functional import pad
from torchrec import JaggedTensor

from dist_imsr.benchmarks.ceilings import matmul_bound
from dist_imsr.benchmarks.options import MAY_BE_ZERO, WorldOptions
from dist_imsr.benchmarks.report import Figure, figures_of, ratios
from dist_imsr.benchmarks.synthetic import draw_biases, draw_items, draw_users
from dist_imsr.benchmarks.world import World, take_turns
from dist_imsr.checks import require
from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.distributed.host_memory import peak_bytes
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.launches import launch_on
from dist_imsr.evaluation.ranking import Ranker, RankingConfig
from dist_imsr.evaluation.seen import SeenItems
from dist_imsr.evaluation.tiles import Precision, Shard
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.interests import Interests

SCORING = ModelConfig().scoring
_SCORE_BYTES = 1 << 30  # of the straightforward way's [users x interests x items]
_CALL_SECONDS = 3600.0  # limit of one call

Query = Literal["ranks", "first_places", "best"]
_QUERIES: tuple[Query, ...] = ("ranks", "first_places", "best")
_PRODUCT: tuple[str, ...] = ("product",)


@dataclass(frozen=True, kw_only=True)
class RankBench(WorldOptions):
    """Times exact ranks, first places and best items over a synthetic catalogue.

    Args:
        items: rows of the table.
        dim: d.
        users: over all ranks, each with one target.
        interests: K of every user.
        met: items that each user has met; ranks are among all items and among the others.
        top: N of the best items and of the first places.
        precision: bf16 measures fp32 too, and refuses ranks that differ between them.
        memory: MiB of scores that a rank may hold.
        repeats: runs of each side.
        seed: of the synthetic items, users and targets.
    """

    items: int = 1_700_000
    dim: int = 64
    users: int = 512
    interests: int = 4
    met: int = 100
    top: int = 20
    precision: Precision = "bf16"
    memory: int = 256
    repeats: int = 5
    seed: int = field(default=0, metadata=MAY_BE_ZERO)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.top <= self.items, "top", self.top, f"at most items, {self.items}")
        require(self.users >= self.ranks, "users", self.users, f"at least one per rank, {self.ranks}")


def bench_rank(options: RankBench) -> list[Figure]:
    """Measures the ranker against the machine's limit and the straightforward way, and its memory.

    Scores are those of the defaults of a run, with a scale and a bias of each item; products are those of whole rows.

    The ceiling of users/s is the time of the users' dot products with all items as one large square product in the
    ranker's precision; on CUDA, for ranks, in the precision of its kernel. It leaves out the softmax over interests,
    comparisons, the order of the best, and that these products are of short rows only; ``..._flops_over_matmul``
    compares with the fp32 product of the same shapes instead.

    Returns:
        Users/s of ranks, first places and best items; the fp32 product's time over that of ranks and of best items;
        users/s over those of the straightforward way, for best items and for ranks; peak bytes over the budget. Names
        end in ``_bf16`` where the ranker's products are bf16.

    Raises:
        RuntimeError: if bf16 finds other ranks than fp32, or the straightforward way other scores.
    """
    precisions: list[Precision] = ["fp32"] if options.precision == "fp32" else ["fp32", "bf16"]
    sides: list[tuple[str, ...]] = [_PRODUCT, ("straightforward", "ranks"), ("straightforward", "best")]
    sides += [(precision, query) for precision in precisions for query in _QUERIES]
    with World(options, _CALL_SECONDS) as world:
        workers = world.start(RankWorker, options)
        # These runs are also the warm-up.
        peaks = {precision: max(workers.call(RankWorker.peak_bytes, precision)) for precision in precisions}
        workers.seconds(RankWorker.run, "product")
        runs = take_turns(options.repeats, *(partial(workers.seconds, RankWorker.run, *side) for side in sides))
        workers.call(RankWorker.check)
    seconds = dict(zip(sides, runs, strict=True))
    flops = 2 * options.users * options.interests * SCORING.row_width(options.dim) * options.items
    product = [flops / s for s in seconds[_PRODUCT]]
    figures = [Figure("matmul_flops_per_second", "flops/s", product, options.settings, matmul_bound(1))]
    for precision in precisions:
        figures += _figures(options, precision, seconds, flops / options.users, peaks[precision])
    return figures


def _figures(
    options: RankBench,
    precision: Precision,
    seconds: dict[tuple[str, ...], list[float]],
    flops_per_user: float,
    peak: int,
) -> list[Figure]:
    """The figures of the ranker with products of one precision."""
    suffix, settings = "" if precision == "fp32" else f"_{precision}", options.settings | {"precision": precision}
    exact, first, best = (seconds[precision, query] for query in _QUERIES)
    product = seconds[_PRODUCT]
    kernel = launch_on(torch.device("cuda")).products if options.device == "cuda" else precision
    users_per_second = {
        f"ranker_users_per_second{suffix}": [options.users / s for s in exact],
        f"first_places_users_per_second{suffix}": [options.users / s for s in first],
        f"best_users_per_second{suffix}": [options.users / s for s in best],
    }
    bounds = {
        f"ranker_users_per_second{suffix}": matmul_bound(flops_per_user, kernel),
        f"best_users_per_second{suffix}": matmul_bound(flops_per_user, precision),
    }
    compared = {
        f"ranker_flops_over_matmul{suffix}": ratios(product, exact),
        f"best_flops_over_matmul{suffix}": ratios(product, best),
        f"ranker_users_per_second_over_straightforward{suffix}": ratios(seconds["straightforward", "best"], best),
        f"ranks_users_per_second_over_straightforward{suffix}": ratios(seconds["straightforward", "ranks"], exact),
        f"ranker_peak_bytes_over_budget{suffix}": [peak / (options.memory << 20)],
    }
    return figures_of(settings, "users/s", users_per_second, bounds) + figures_of(settings, "ratio", compared)


class RankWorker:
    """One rank's table, shard, and users with their targets."""

    def __init__(self, topology: Topology, options: RankBench) -> None:
        self.options, self.topology = options, topology
        dim, extra = options.dim, SCORING.row_width(options.dim) - options.dim
        items = draw_items(options.items, dim, options.seed)
        self.table = pad(items, (0, extra)).to(topology.device)
        self.table[:, dim] = draw_biases(options.items, options.seed).to(topology.device)
        section = CatalogueConfig(headroom=0.0)
        self.catalogue = Catalogue(section, [options.items], dim, 0, topology, extra=extra)
        rows = self.catalogue.rows
        known = self.table[rows.start : rows.stop]
        self.catalogue.flushed_weight()[: len(known)] = known
        vectors, ranks = draw_users(self.table[:, :dim], options.users, options.interests, options.seed)
        self.all_queries = _queries(vectors).vectors.flatten(0, 1)
        mine = slice(topology.rank, None, topology.world_size)
        self.interests = Interests(vectors[mine], torch.ones_like(vectors[mine, :, 0], dtype=torch.bool))
        self.targets = self._items_at(ranks[mine])
        draw = torch.Generator().manual_seed(options.seed + 3 + topology.rank)
        met = torch.randint(options.items, (len(self.targets), options.met), generator=draw).sort(1).values
        first = pad(met[:, 1:] != met[:, :-1], (1, 0), value=True)  # of equal draws
        met = JaggedTensor(met[first].to(topology.device), lengths=first.sum(1).to(topology.device))
        self.seen = SeenItems(met, self.table[met.values()])
        self.results: dict[tuple[str, ...], torch.Tensor] = {}

    def run(self, side: str, query: Query = "best") -> None:
        """Runs one side once and keeps its result for `check`."""
        if side == "product":
            self._product()
        elif side == "straightforward":
            self.results[side, query] = self._straightforward(query)
        else:
            self.results[side, query] = self._ranker(side, query)  # type: ignore[arg-type]

    def peak_bytes(self, precision: Precision) -> int:
        """The memory that the ranker's queries take on top of what is held before."""
        before = peak_bytes(self.topology.device, reset=True)
        for query in _QUERIES:
            self.run(precision, query)
        return peak_bytes(self.topology.device) - before

    def check(self) -> None:
        """Refuses results that differ between the sides."""
        exact = self.results["fp32", "ranks"]
        lower = self.results.get(("bf16", "ranks"), exact)
        if not torch.equal(exact, lower):
            raise RuntimeError(f"{int((exact != lower).sum())} of {len(exact)} ranks differ between fp32 and bf16")
        torch.testing.assert_close(
            self.results["fp32", "best"], self.results["straightforward", "best"], rtol=1e-4, atol=1e-5
        )

    def _items_at(self, ranks: torch.Tensor) -> torch.Tensor:
        """The item that has a given rank with each user."""
        places = (len(self.table) + 1 - ranks).split(self._chunk)
        return torch.stack(
            [
                _item_at(one, place)
                for scores, part in zip(self._scores(), places, strict=True)
                for one, place in zip(scores, part.tolist(), strict=True)
            ]
        )

    def _ranker(self, precision: Precision, query: Query) -> torch.Tensor:
        options = self.options
        ranker = Ranker(self.catalogue, self.topology, SCORING, RankingConfig(precision, options.memory))
        if query == "best":
            return ranker.best(self.interests, options.items, options.top)[0]
        targets = JaggedTensor(self.targets, lengths=torch.ones_like(self.targets))
        most = None if query == "ranks" else options.top
        embeddings = self.table[self.targets]
        found = ranker.ranks(self.interests, targets, embeddings, options.items, most, self.seen)
        return torch.cat([ranks for ranks in found if ranks is not None])

    def _product(self) -> None:
        """The shard's dot products alone, in tiles of as many items as the ranker's."""
        shard = Shard(self.catalogue.flushed_weight(), 0, memory=self.options.memory << 20)
        users = min(self.options.users, shard.max_users(self.options.interests))
        size = max(1, shard.tile_size // (users * self.options.interests))
        room = self.all_queries.new_empty(len(self.all_queries) * size)
        for items in shard.weight.split(size):
            out = room[: len(self.all_queries) * len(items)].view(len(self.all_queries), len(items))
            torch.mm(self.all_queries, items.T, out=out)

    def _straightforward(self, query: Query) -> torch.Tensor:
        """The usual implementation: every score, then topk or a comparison."""
        if query == "best":
            return torch.cat([scores.topk(self.options.top).values for scores in self._scores()])
        targets = self.targets.unsqueeze(1).split(self._chunk)
        parts = zip(self._scores(), targets, strict=True)
        return torch.cat([1 + (scores > scores.gather(1, own)).sum(1) for scores, own in parts])

    @property
    def _chunk(self) -> int:
        """Users of a full score tensor."""
        return max(1, _SCORE_BYTES // (4 * self.options.interests * self.options.items))

    def _scores(self) -> Iterator[torch.Tensor]:
        """Scores ``[b, items]`` of this rank's users, a chunk at a time."""
        for vectors in _queries(self.interests.vectors).vectors.split(self._chunk):
            agreement = vectors @ self.table.T
            yield (agreement.softmax(1) * agreement).sum(1)


def _queries(vectors: torch.Tensor) -> Interests:
    return SCORING.queries(Interests(vectors, torch.ones_like(vectors[..., 0], dtype=torch.bool)))


def _item_at(scores: torch.Tensor, place: int) -> torch.Tensor:
    """The item ``[]`` with the score at a place, counted from the lowest."""
    if scores.is_cuda:  # where kthvalue occupies one multiprocessor alone
        return scores.sort().indices[place - 1]
    return scores.kthvalue(place).indices
