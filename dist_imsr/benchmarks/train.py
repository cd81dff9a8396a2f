"""Steps of training over synthetic items and users: speed, and ratios whose sides take turns."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torchrec import JaggedTensor

from dist_imsr.benchmarks.clock import timed
from dist_imsr.benchmarks.floors import per, step_bound
from dist_imsr.benchmarks.report import Figure, ratios
from dist_imsr.benchmarks.world import Device, check_counts, settings_of, settle, world
from dist_imsr.checks import require, require_file
from dist_imsr.data.batch import Batch
from dist_imsr.data.jagged import pad
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.distributed.host_memory import peak_bytes
from dist_imsr.distributed.interest_store import InterestStoreConfig
from dist_imsr.distributed.recommender import Recommender, scores_of
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.model.extractors import ModelConfig, build_extractor
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.scoring import sampled_softmax
from dist_imsr.strategies.companion import Companion
from dist_imsr.strategies.interests import InterestPolicy

_BATCHES = 8  # made before the clock starts, and taken in turn
_FEW_ITEMS = 60_000

Base = Literal["comirec_dr", "comirec_sa"]
Build = Callable[[Topology, "TrainBench"], Callable[[Batch, Batch], Any]]


@dataclass(frozen=True)
class TrainBench:
    """Times training steps of ComiRec-DR over a synthetic catalogue.

    Args:
        items: rows of the table.
        users: users in the interest store, over all ranks.
        batch: users in a global step.
        device: what ranks work on; auto is CUDA where there is a device.
        ranks: processes; 0 for two on the host, and for one on each device of CUDA.
        threads: of each process.
        dim: d.
        interests: K of every user.
        history: the longest history; lengths are uniform from 1.
        targets: the most targets of a user; numbers are uniform from 1.
        negatives: shared by a step's targets.
        steps: timed together, in one run.
        warmup: steps before the first run.
        repeats: runs of each side.
        seed: of the synthetic batches.
        engine: the dense weights and their precision, as in launch/train.py.
        json: where the figures are written as a list of objects.
    """

    items: int = 1_700_000
    users: int = 100_000
    batch: int = 1024
    device: Device = "auto"
    ranks: int = 0
    threads: int = 1
    dim: int = 64
    interests: int = 4
    history: int = 50
    targets: int = 5
    negatives: int = 1000
    steps: int = 10
    warmup: int = 5
    repeats: int = 7
    seed: int = 0
    engine: EngineConfig = field(default_factory=EngineConfig)
    json: Path | None = None

    def __post_init__(self) -> None:
        settle(self)
        check_counts(self, "warmup")
        require(self.users >= self.batch, "users", self.users, f"at least the batch, {self.batch}")
        require(self.batch % self.ranks == 0, "batch", self.batch, f"a multiple of ranks, {self.ranks}")
        require_file(self.json, "json")

    @classmethod
    def shared(cls, options: Any, **others: int) -> "TrainBench":
        """What another benchmark's options say of the model, its users and the batches; checks them.

        Args:
            options: a dataclass.
            others: values that differ from its own.

        Returns:
            Its values where the keys are the same, and the defaults elsewhere.
        """
        names = {one.name for one in fields(cls)} - {"json"}
        return cls(**{name: value for name, value in asdict(options).items() if name in names} | others)


def bench_train(options: TrainBench) -> list[Figure]:
    """Measures steps/s and users/s as asked, and three ratios that a trainer for large catalogues is judged by.

    The ceiling of the first two figures is the longer of two times: that in which memory moves the rows that a step
    reads and writes, the optimizer's state and the activations, and that of its matrix products
    (`dist_imsr.benchmarks.floors`).

    ``users_per_second_R_ranks_over_1`` divides one global batch among the ranks, as the schedule does; its twin
    ``..._same_batch_per_rank`` lets the global batch grow with them.

    Args:
        options: the subcommand's.

    Returns:
        The figures.
    """
    alone = replace(options, ranks=1)
    half = replace(alone, batch=options.batch // options.ranks)
    few = replace(alone, items=min(_FEW_ITEMS, options.items))
    two_threads = replace(alone, threads=2)
    figures = []

    with ExitStack() as sides:
        others = [half, alone] if options.ranks > 1 else []
        asked, *fewer_ranks = [sides.enter_context(Side(one, sharded)) for one in (options, *others)]
        seconds, *others_seconds = take_turns(asked, *fewer_ranks)
    settings, ranks, bound = asked.settings, options.ranks, step_bound(options)
    users = [options.steps * options.batch / s for s in seconds]
    figures += [
        Figure("steps_per_second", "steps/s", [options.steps / s for s in seconds], settings, bound),
        Figure("users_per_second", "users/s", users, settings, per(bound, options.batch)),
        Figure("peak_bytes_of_all_ranks", "bytes", [asked.peak_bytes], settings),
    ]
    if ranks > 1:
        one_seconds, whole_seconds = others_seconds
        name = f"users_per_second_{ranks}_ranks_over_1"
        figures.append(Figure(name, "ratio", ratios(whole_seconds, seconds), settings | {"batch_of_1": alone.batch}))
        scaled = [ranks * ratio for ratio in ratios(one_seconds, seconds)]
        figures.append(Figure(f"{name}_same_batch_per_rank", "ratio", scaled, settings | {"batch_of_1": half.batch}))

    with Side(alone, sharded) as many, Side(few, sharded) as fewer:
        runs = ratios(*take_turns(many, fewer))
    figures.append(Figure(f"step_time_{alone.items}_over_{few.items}_items", "ratio", runs, many.settings))

    with Side(two_threads, sharded) as ours, Side(two_threads, _plain) as plain:
        ours_seconds, plain_seconds = take_turns(ours, plain)
    runs = ratios(plain_seconds, ours_seconds)
    figures.append(Figure("users_per_second_over_plain_torch", "ratio", runs, ours.settings))
    memory = [ours.peak_bytes / plain.peak_bytes]
    figures.append(Figure("peak_bytes_over_plain_torch", "ratio", memory, ours.settings))
    return figures


class Side:
    """A world that builds one kind of trainer, runs steps when asked and waits idly else; a context manager.

    Args:
        options: of the steps.
        build: makes what takes a step with a batch.
        batches: made before the clock starts, and taken in turn.
    """

    def __init__(self, options: TrainBench, build: Build, batches: int = _BATCHES) -> None:
        self.settings = settings_of(options)
        self.options, self._build, self._batches = options, build, batches
        self.peak_bytes = 0

    def run(self, steps: int) -> float:
        """Takes some steps.

        Args:
            steps: how many.

        Returns:
            Seconds that the slowest rank takes.
        """
        seconds, peaks = zip(*self._ranks.call(run, steps), strict=True)
        self.peak_bytes = sum(peaks)
        return max(seconds)

    def __enter__(self) -> "Side":
        self._ranks = world(self.options).__enter__()
        self._ranks.call(set_up, self._build, self.options, self._batches)
        self.run(self.options.warmup)
        return self

    def __exit__(self, *error: Any) -> None:
        self._ranks.__exit__(*error)


def take_turns(*sides: Side) -> list[list[float]]:
    """Runs every side once a repeat.

    Args:
        sides: of one comparison.

    Returns:
        Each side's seconds.
    """
    rounds = [[side.run(side.options.steps) for side in sides] for _ in range(sides[0].options.repeats)]
    return [list(seconds) for seconds in zip(*rounds, strict=True)]


_step: Callable[[], Any]  # of this rank's process


def set_up(topology: Topology, build: Build, options: TrainBench, batches: int = _BATCHES) -> None:
    """Makes what takes this rank's steps, and the batches.

    Args:
        topology: this rank's place.
        build: makes what takes a step with a batch.
        options: of the steps.
        batches: how many are made, and taken in turn.
    """
    global _step
    take = build(topology, options)
    turns = pairwise(cycle([_batch(options, topology, number).to(topology.device) for number in range(batches)]))
    _step = lambda: take(*next(turns))  # noqa: E731


def run(topology: Topology, steps: int) -> tuple[float, int]:
    """Takes some steps; collective.

    Args:
        topology: this rank's place.
        steps: how many.

    Returns:
        Seconds until the slowest rank is done, and the most bytes that this rank has ever held: of its CUDA device, or
        resident on the host.
    """

    def take() -> None:
        for _ in range(steps):
            _step()

    seconds, _ = timed(topology, take)
    return seconds, peak_bytes(topology.device)


def sharded(topology: Topology, options: TrainBench, base: Base = "comirec_dr") -> Callable[[Batch, Batch], Any]:
    """This project's step, as the trainer takes it.

    Args:
        topology: this rank's place.
        options: of the step.
        base: the base model.

    Returns:
        Takes a step with a batch, given the next one.
    """
    return recommender(topology, options, base).update


def recommender(
    topology: Topology, options: TrainBench, base: Base = "comirec_dr", policy: InterestPolicy | None = None
) -> Recommender:
    """A model in training, whose users all have their interests.

    Args:
        topology: this rank's place.
        options: of the model.
        base: the base model.
        policy: what becomes of interests; nothing without it.

    Returns:
        This rank's part.
    """
    edges = _edges(options)
    model = Recommender(
        policy or InterestPolicy.plain(),
        Companion(),
        ModelConfig(base, dim=options.dim, interests=options.interests),
        *(CatalogueConfig(headroom=0.0), InterestStoreConfig(), options.engine, RankingConfig()),
        items=[options.items],
        bucket_offsets=edges,
        seed=options.seed,
        topology=topology,
    )
    rows = torch.arange(edges[topology.rank + 1] - edges[topology.rank])
    model.store.expand(rows, options.interests, span=0)
    model.engine.train(True)
    return model


def _plain(topology: Topology, options: TrainBench) -> Callable[[Batch, Batch], Any]:
    """The yardstick: nn.Embedding with a dense gradient, and dense Adam over everything."""
    table = nn.Embedding(options.items, options.dim, device=topology.device)
    extractor = build_extractor(ModelConfig(dim=options.dim, interests=options.interests)).to(topology.device)
    stored = torch.randn(options.users, options.interests, options.dim, device=topology.device)
    optimizer = torch.optim.Adam([*table.parameters(), *extractor.parameters()])

    def step(batch: Batch, following: Batch) -> float:
        history, targets, negatives = (
            table(sequence.values()) for sequence in (batch.history, batch.targets, batch.negatives)
        )
        start = stored[batch.users]
        mask = torch.ones(start.shape[:2], dtype=torch.bool, device=start.device)
        interests = extractor(*pad(history, batch.history.lengths()), Start(Interests(start, mask)))
        targets, asked = pad(targets, batch.targets.lengths())
        loss = sampled_softmax(scores_of(batch, interests, targets, interests.vectors @ targets.mT, asked, negatives))
        optimizer.zero_grad()
        (loss / batch.world_targets).backward()
        optimizer.step()
        return loss.item()

    return step


def _edges(options: TrainBench) -> list[int]:
    """The first user of each rank, and the number of users."""
    return [rank * options.users // options.ranks for rank in range(options.ranks + 1)]


def _batch(options: TrainBench, topology: Topology, number: int) -> Batch:
    """This rank's slice of a global batch: users in even steps over its own, items uniform over the catalogue."""
    draw = np.random.default_rng((options.seed, number))
    each = options.batch // options.ranks
    mine = slice(topology.rank * each, (topology.rank + 1) * each)
    histories, targets = (draw.integers(1, most + 1, options.batch) for most in (options.history, options.targets))
    negatives = _jagged(draw, options.items, np.array([options.negatives]))

    draw = np.random.default_rng((options.seed, number, topology.rank))
    first, end = _edges(options)[topology.rank : topology.rank + 2]
    gap = (end - first) // each
    return Batch(
        span=0,
        users=torch.from_numpy(first + np.arange(each) * gap + draw.integers(gap, size=each)),
        history=_jagged(draw, options.items, histories[mine]),
        targets=_jagged(draw, options.items, targets[mine]),
        negatives=negatives,
        world_targets=int(targets.sum()),
    )


def _jagged(draw: np.random.Generator, items: int, lengths: np.ndarray) -> JaggedTensor:
    return JaggedTensor(torch.from_numpy(draw.integers(items, size=lengths.sum())), lengths=torch.from_numpy(lengths))
