"""The interest store: what a step costs beside many users, and how fast interests come and go."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from dist_imsr.benchmarks.ceilings import moved
from dist_imsr.benchmarks.clock import timed
from dist_imsr.benchmarks.report import Figure, ratios
from dist_imsr.benchmarks.train import Base, Side, TrainBench, recommender, sharded, take_turns
from dist_imsr.benchmarks.world import Device, settings_of, settle, world
from dist_imsr.checks import require, require_file
from dist_imsr.distributed import keyed_random
from dist_imsr.distributed.host_memory import peak_bytes, resize_in_place
from dist_imsr.distributed.interest_store import DRAWN
from dist_imsr.distributed.topology import Topology
from dist_imsr.strategies.interests import InterestPolicy

_SIDES: dict[str, Base] = {
    "": "comirec_dr",
    "_comirec_sa": "comirec_sa",
}  # what a figure's name ends with, and its base model
_SHORT = 0.01  # what is left of an interest that is to be trimmed, whose norm is that of d standard normal numbers


@dataclass(frozen=True)
class StoreBench:
    """Times steps of ComiRec beside many users and beside few, and the growth and trimming of interests.

    Args:
        users: in the interest store, over all ranks.
        few: users of the other side of a step's figures.
        items: rows of the table, on both sides.
        batch: users in a global step.
        device: what ranks work on; auto is CUDA where there is a device.
        ranks: processes; 0 for two on the host, and for one on each device of CUDA.
        threads: of each process.
        dim: d.
        interests: K of every user, in the steps and before growth.
        growing: the share of users who gain interests; 0.1 and ``new`` make 0.3 a user, as the planner takes it.
        new: interests that each of them gains.
        short: of these, how many are too short to stay.
        steps: timed together, in one run.
        warmup: steps before the first run.
        repeats: runs of each side.
        seed: of the synthetic batches.
        json: where the figures are written as a list of objects.
    """

    users: int = 977_000
    few: int = 10_000
    items: int = 100_000
    batch: int = 1024
    device: Device = "auto"
    ranks: int = 0
    threads: int = 1
    dim: int = 64
    interests: int = 9
    growing: float = 0.1
    new: int = 3
    short: int = 2
    steps: int = 10
    warmup: int = 5
    repeats: int = 7
    seed: int = 0
    json: Path | None = None

    def __post_init__(self) -> None:
        settle(self)
        _ = self.training  # which checks the keys that they share
        require(self.batch <= self.few <= self.users, "few", self.few, "the batch at least, and users at most")
        fits = 0 < self.growing <= 1 and self.growing * (self.users // self.ranks) >= 1
        require(fits, "growing", self.growing, "at most 1, and one user of each rank at least")
        require(1 <= self.new < self.interests, "new", self.new, "at least 1, and less than interests")
        require(1 <= self.short <= self.new, "short", self.short, "at least 1, and new at most")
        require_file(self.json, "json")

    @property
    def training(self) -> TrainBench:
        """The model, its users and the batches."""
        return TrainBench.shared(self)


def bench_store(options: StoreBench) -> list[Figure]:
    """Measures whether a step's cost depends on the batch alone, and how near growth and trimming come to a copy.

    ``step_time_U_over_F_users`` is the time of a step of training with U users in the store over that with F, the
    global batch and the items being equal; its twin ``..._comirec_sa`` is that of a base model whose queries and
    their optimizer's state are in the store too. No two steps' batches are of the same users but by chance, and each
    is spread over the whole store.

    ``expand_and_trim_rate_over_memcpy`` is the rate of growth (`InterestStore.expand`, as the detector asks for it)
    and of trimming (`Recommender.trim`, which finds what is too short) over that of a plain copy of the same bytes
    between two blocks of memory that have been touched. The bytes are those of the vectors that each of the two
    leaves, counted once; births, offsets and what is removed count as none. All that the two do counts as their time,
    the norms of the new interests and their drawing from N(0, I) too, which have no part in a copy. The first growth is
    not timed: later ones find the memory that it took. ``..._and_drawing`` adds the time of the same draws alone, of
    which nothing is kept, to that of the copy.

    Figures that end with ``_all_grow`` are of a span in which every user gains ``new`` interests, and has ``interests``
    by then.

    Seconds have the machine's own copies of these bytes as their ceiling, which leave out as much as the plain copy.

    The peaks are the most that ranks hold while the store grows for the first time, or is trimmed, what is not the
    store left out, over what the store holds afterwards.

    Args:
        options: the subcommand's.

    Returns:
        The figures.
    """
    figures = []
    fresh = options.warmup + options.steps * options.repeats
    for suffix, base in _SIDES.items():
        build = partial(sharded, base=base)
        few = TrainBench.shared(options, users=options.few)
        with Side(options.training, build, fresh) as many, Side(few, build, fresh) as fewer:
            runs = ratios(*take_turns(many, fewer))
        name = f"step_time_{options.users}_over_{options.few}_users{suffix}"
        figures.append(Figure(name, "ratio", runs, many.settings | {"base": base}))

    figures += _moving(options, options.interests, options.growing, "")
    return figures + _moving(options, options.interests - options.new, 1.0, "_all_grow")


def _moving(options: StoreBench, interests: int, growing: float, suffix: str) -> list[Figure]:
    """The figures of growth and trimming, for so many interests before and a share of users who gain more."""
    with world(options) as ranks:
        ranks.call(_set_up, options, interests, growing)
        peaks = [sum(column) for column in zip(*ranks.call(_peaks), strict=True)]
        rounds = [ranks.call(_round) for _ in range(options.repeats)]
    told = ([max(column) for column in zip(*each, strict=True)] for each in rounds)
    expand, grown_copy, draw, trim, trimmed_copy = (list(column) for column in zip(*told, strict=True))
    both, copies = _sums(expand, trim), _sums(grown_copy, trimmed_copy)
    rate = "expand_and_trim_rate_over_memcpy"
    figures: dict[str, tuple[str, list[float]]] = {
        rate: ("ratio", ratios(copies, both)),
        f"{rate}_and_drawing": ("ratio", ratios(_sums(copies, draw), both)),
        "expand_rate_over_memcpy": ("ratio", ratios(grown_copy, expand)),
        "trim_rate_over_memcpy": ("ratio", ratios(trimmed_copy, trim)),
        "seconds_an_expand": ("s", expand),
        "seconds_of_its_draws": ("s", draw),
        "seconds_a_trim": ("s", trim),
        "seconds_of_both_copies": ("s", copies),
        "expand_peak_bytes_over_held": ("ratio", [peaks[0] / peaks[1]]),
        "trim_peak_bytes_over_held": ("ratio", [peaks[2] / peaks[3]]),
    }
    settings = settings_of(options) | {"interests": interests, "growing": growing}
    vector = 2 * 4 * options.dim  # bytes, read and written
    gainers = int(growing * options.users)
    grown, kept = (options.users * interests + gainers * more for more in (options.new, options.new - options.short))
    bounds = {
        "seconds_an_expand": moved(vector * grown),
        "seconds_a_trim": moved(vector * kept),
        "seconds_of_both_copies": moved(vector * (grown + kept)),
    }
    return [Figure(f"{name}{suffix}", unit, runs, settings, bounds.get(name)) for name, (unit, runs) in figures.items()]


def _sums(one: list[float], other: list[float]) -> list[float]:
    return [mine + yours for mine, yours in zip(one, other, strict=True)]


class _Held:
    """One rank's part of the model, and room for a copy of its vectors when they are the most."""

    def __init__(self, topology: Topology, options: StoreBench, interests: int, growing: float) -> None:
        self.options, self.topology = options, topology
        self.model = recommender(topology, replace(options.training, interests=interests), policy=InterestPolicy())
        self.store = self.model.store
        users = len(self.store.counts)
        order = torch.randperm(users, generator=torch.Generator().manual_seed(options.seed))  # the detector has none
        self.rows = order[: int(growing * users)].to(topology.device)
        most = len(self.store.values) + len(self.rows) * options.new
        self.room = resize_in_place(self.store.values.new_empty(0, options.dim), most).zero_()

    def expand(self) -> None:
        """Gives users new interests, as `Recommender.detect` does."""
        self.store.expand(self.rows, torch.full_like(self.rows, self.options.new), span=1)

    def draw(self) -> None:
        """Draws as many vectors, with as many keys, and keeps none."""
        users, options = self.rows.repeat_interleave(self.options.new), self.options
        for part in users.split(DRAWN):
            keyed_random.normal(options.dim, 0, options.seed, part, 1, part)

    def trim(self) -> None:
        """Trims as at the end of a span."""
        self.model.trim(span=1)

    def copy(self) -> None:
        """Copies the vectors."""
        self.room[: len(self.store.values)].copy_(self.store.values)

    def shorten(self) -> None:
        """Makes the last of each user's new interests too short to stay."""
        created = self.store.created(span=1).view(-1, self.options.new)
        for part in created[:, -self.options.short :].flatten().split(DRAWN):
            self.store.values[part] *= _SHORT

    def restore(self) -> None:
        """Removes all that is new."""
        self.store.trim(self.store.birth_span < 1)


_held: _Held  # of this rank's process


def _set_up(topology: Topology, options: StoreBench, interests: int, growing: float) -> None:
    global _held
    _held = _Held(topology, options, interests, growing)


def _peaks(topology: Topology) -> tuple[int, ...]:
    """The most that this rank holds beside what is not the store, and then the store, when it grows and is trimmed."""
    told, store = [], _held.store
    for act in (_held.expand, _held.trim):
        beside = peak_bytes(topology.device, reset=True) - store.bytes
        act()
        told += [peak_bytes(topology.device) - beside, store.bytes]
        _held.shorten() if act == _held.expand else _held.restore()
    return tuple(told)


def _round(topology: Topology) -> tuple[float, ...]:
    """Seconds of an expand, a copy of what it leaves, its draws, a trim and a copy of what that leaves."""
    told = []
    for act in (_held.expand, _held.copy, _held.draw, _held.trim, _held.copy):
        if act == _held.trim:
            _held.shorten()
        told.append(timed(topology, act)[0])
    _held.restore()
    return tuple(told)
