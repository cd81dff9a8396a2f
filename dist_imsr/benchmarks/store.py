"""The interest store: the cost of a step with many users, and the speed of growing and trimming interests."""

from dataclasses import dataclass, field, replace
from functools import partial

import torch

from dist_imsr.benchmarks.ceilings import copy_bound
from dist_imsr.benchmarks.options import MAY_BE_ZERO
from dist_imsr.benchmarks.report import Figure, figures_of, ratios
from dist_imsr.benchmarks.steps import Base, Side, StepsOptions, build_recommender, sharded_step
from dist_imsr.benchmarks.world import World, take_turns
from dist_imsr.checks import require
from dist_imsr.distributed import keyed_random
from dist_imsr.distributed.host_memory import peak_bytes, resize_in_place
from dist_imsr.distributed.interest_store import DRAWN
from dist_imsr.distributed.topology import Topology
from dist_imsr.model.trimmer import TrimmerConfig
from dist_imsr.strategies.trimming import trim

_BASES: dict[str, Base] = {"": "comirec_dr", "_comirec_sa": "comirec_sa"}  # by the suffix of a figure's name
_SHORTENED = 0.01  # factor of an interest that is to be trimmed, whose norm is that of d standard normal numbers


@dataclass(frozen=True, kw_only=True)
class StoreBench(StepsOptions):
    """Times steps of ComiRec with many users in the store and with few, and the growth and trimming of interests.

    Args:
        few: users of the other side of a step's figures.
        interests: K of every user, in the steps and before growth.
        growing: the share of users who gain interests; 0.1 and ``new`` make 0.3 a user, as the planner assumes.
        new: interests that each of them gains.
        short: of these, how many are too short to stay.
        warmup: steps before the first run.
    """

    users: int = 977_000
    few: int = 10_000
    items: int = 100_000
    interests: int = 9
    growing: float = 0.1
    new: int = 3
    short: int = 2
    warmup: int = field(default=5, metadata=MAY_BE_ZERO)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch <= self.few <= self.users, "few", self.few, "at least the batch, and at most users")
        fits = 0 < self.growing <= 1 and self.growing * (self.users // self.ranks) >= 1
        require(fits, "growing", self.growing, "at most 1, and at least one user of each rank")
        require(self.new < self.interests, "new", self.new, "less than interests")
        require(self.short <= self.new, "short", self.short, "at most new")


def bench_store(options: StoreBench) -> list[Figure]:
    """Measures whether a step's cost depends on the batch alone, and growth and trimming against a plain copy.

    ``step_time_U_over_F_users`` is the time of a training step with U users in the store over that with F, with the
    same global batch and items; ``..._comirec_sa`` is that of a base model whose queries and their optimizer's state
    are in the store too. Every step has a batch of its own, whose users are spread over the whole store.

    ``expand_and_trim_rate_over_memcpy`` is the rate of growth (`InterestStore.expand`, as the detector calls it) and of
    trimming (which also finds the short interests) over that of a plain copy of the same bytes between two blocks of
    memory that were touched before. The bytes are those of the vectors that each of the two leaves, counted once;
    births, offsets and what is removed do not count. The norms of the new interests and their drawing from N(0, I)
    count as time of growth and trimming, not of the copy. The first growth is not timed: later ones reuse its memory.
    ``..._and_drawing`` adds the time of the draws alone to that of the copy.

    Figures that end with ``_all_grow`` are of a span in which every user gains ``new`` interests up to ``interests``.

    The ceiling of seconds is the machine's own copy of these bytes. The peaks are of the store's memory while it grows
    for the first time, or is trimmed, over its size afterwards.
    """
    figures = []
    batches = options.warmup + options.steps * options.repeats
    few = replace(options, users=options.few, growing=1.0)  # which any number of users allows; steps do not grow
    for suffix, base in _BASES.items():
        step = partial(sharded_step, base=base)
        with World(options) as world:
            sides = [Side(world, one, step, warmup=one.warmup, batches=batches) for one in (options, few)]
            many_seconds, few_seconds = take_turns(options.repeats, *(side.run for side in sides))
        name = f"step_time_{options.users}_over_{options.few}_users{suffix}"
        settings = options.settings | {"base": base}
        figures.append(Figure(name, "ratio", ratios(many_seconds, few_seconds), settings))
    figures += _growth(options, options.interests, options.growing, "")
    return figures + _growth(options, options.interests - options.new, 1.0, "_all_grow")


def _growth(options: StoreBench, interests: int, growing: float, suffix: str) -> list[Figure]:
    """The figures of growth and trimming, with K interests of every user before and a share of users who gain more."""
    with World(options) as world:
        workers = world.start(StoreWorker, options, interests, growing)
        peaks = [sum(column) for column in zip(*workers.call(StoreWorker.peak_bytes), strict=True)]
        worker = StoreWorker
        turn = worker.expand, worker.copy, worker.draw, worker.shorten, worker.trim, worker.copy, worker.restore
        rounds = [[workers.seconds(method) for method in turn] for _ in range(options.repeats)]
    expand, expand_copy, draw, _, trim, trim_copy, _ = (list(column) for column in zip(*rounds, strict=True))
    both, copies = _sums(expand, trim), _sums(expand_copy, trim_copy)
    vector = 2 * 4 * options.dim  # bytes, read and written
    gainers = int(growing * options.users)
    grown, kept = (options.users * interests + gainers * more for more in (options.new, options.new - options.short))
    rates = {
        f"expand_and_trim_rate_over_memcpy{suffix}": ratios(copies, both),
        f"expand_and_trim_rate_over_memcpy_and_drawing{suffix}": ratios(_sums(copies, draw), both),
        f"expand_rate_over_memcpy{suffix}": ratios(expand_copy, expand),
        f"trim_rate_over_memcpy{suffix}": ratios(trim_copy, trim),
        f"expand_peak_bytes_over_held{suffix}": [peaks[0] / peaks[1]],
        f"trim_peak_bytes_over_held{suffix}": [peaks[2] / peaks[3]],
    }
    settings = options.settings | {"interests": interests, "growing": growing}
    return [
        *figures_of(settings, "ratio", rates),
        Figure(f"seconds_an_expand{suffix}", "s", expand, settings, copy_bound(vector * grown)),
        Figure(f"seconds_of_its_draws{suffix}", "s", draw, settings),
        Figure(f"seconds_a_trim{suffix}", "s", trim, settings, copy_bound(vector * kept)),
        Figure(f"seconds_of_both_copies{suffix}", "s", copies, settings, copy_bound(vector * (grown + kept))),
    ]


def _sums(one: list[float], other: list[float]) -> list[float]:
    return [first + second for first, second in zip(one, other, strict=True)]


class StoreWorker:
    """One rank's part of the model, and a block for a copy of its vectors at their largest number."""

    def __init__(self, topology: Topology, options: StoreBench, interests: int, growing: float) -> None:
        self.options, self.topology = options, topology
        self.model = build_recommender(topology, options, interests=interests)
        self.store = self.model.store
        users = len(self.store.counts)
        order = torch.randperm(users, generator=torch.Generator().manual_seed(options.seed))
        self.rows = order[: int(growing * users)].to(topology.device)
        most = len(self.store.values) + len(self.rows) * options.new
        self.block = resize_in_place(self.store.values.new_empty(0, options.dim), most).zero_()

    def expand(self) -> None:
        """Gives users new interests, as the detector does."""
        self.store.expand(self.rows, torch.full_like(self.rows, self.options.new), span=1)

    def draw(self) -> None:
        """Draws as many vectors with as many keys."""
        users = self.rows.repeat_interleave(self.options.new)
        for part in users.split(DRAWN):
            keyed_random.normal(self.options.dim, 0, self.options.seed, part, 1, part)

    def trim(self) -> None:
        """Trims as at the end of a span."""
        trim(self.store, TrimmerConfig(), span=1)

    def copy(self) -> None:
        """Copies the vectors."""
        self.block[: len(self.store.values)].copy_(self.store.values)

    def shorten(self) -> None:
        """Makes the last of each user's new interests too short to stay."""
        created = self.store.created(span=1).view(-1, self.options.new)
        for part in created[:, -self.options.short :].flatten().split(DRAWN):
            self.store.values[part] *= _SHORTENED

    def restore(self) -> None:
        """Removes all new interests."""
        self.store.trim(self.store.birth_span < 1)

    def peak_bytes(self) -> tuple[int, ...]:
        """The peak without what is not the store, and the store's size afterwards: of growth, then of trimming."""
        results = []
        for act, following in ((self.expand, self.shorten), (self.trim, self.restore)):
            others = peak_bytes(self.topology.device, reset=True) - self.store.bytes
            act()
            results += [peak_bytes(self.topology.device) - others, self.store.bytes]
            following()
        return tuple(results)
