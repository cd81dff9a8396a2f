"""Training steps over synthetic items and users: the model, its batches, and a plain PyTorch version."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torchrec import JaggedTensor

from dist_imsr import devices
from dist_imsr.benchmarks.options import MAY_BE_ZERO, WorldOptions
from dist_imsr.benchmarks.world import World
from dist_imsr.checks import require
from dist_imsr.data.batch import Batch
from dist_imsr.data.jagged import longest, pad
from dist_imsr.data.user_ids import OwnedUsers
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.distributed.host_memory import peak_bytes
from dist_imsr.distributed.interest_store import InterestStoreConfig
from dist_imsr.distributed.objective import score_batch
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.distributed.topology import Topology
from dist_imsr.model.extractors import ModelConfig, build_extractor
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.scoring import sampled_softmax
from dist_imsr.strategies.span_trainer import READ_EVERY

_BATCHES = 8

Base = Literal["comirec_dr", "comirec_sa"]
Step = Callable[[Batch, Batch], Any]
"""One training step with a batch; the second argument is the next step's batch, for prefetching."""


@dataclass(frozen=True, kw_only=True)
class StepsOptions(WorldOptions):
    """Options of a benchmark that trains steps over synthetic items and users.

    Args:
        items: rows of the table.
        users: users in the interest store, over all ranks, or a few more: each bucket of them has as many.
        batch: users in a global step.
        dim: d.
        interests: K of every user.
        history: the longest history; lengths are uniform from 1.
        targets: the most targets of a user; numbers are uniform from 1.
        negatives: shared by a step's targets.
        steps: timed together, in one run.
        repeats: runs of each side.
        seed: of the synthetic batches.
        deterministic: whether sums run in a fixed order, as with training.deterministic.
        engine: the dense weights and their precision, as in launch/train.py.
    """

    items: int = 1_700_000
    users: int = 100_000
    batch: int = 1024
    dim: int = 64
    interests: int = 4
    history: int = 50
    targets: int = 5
    negatives: int = 1000
    steps: int = 10
    repeats: int = 7
    seed: int = field(default=0, metadata=MAY_BE_ZERO)
    deterministic: bool = True
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.users >= self.batch, "users", self.users, f"at least the batch, {self.batch}")
        require(self.batch % self.ranks == 0, "batch", self.batch, f"a multiple of ranks, {self.ranks}")

    @property
    def n_buckets(self) -> int:
        """The number of buckets of users."""
        return self.ranks

    @property
    def users_per_bucket(self) -> int:
        """The number of users of each bucket."""
        return -(-self.users // self.n_buckets)


Build = Callable[[Topology, StepsOptions], Step]


class Side:
    """One kind of training steps on a world of ranks.

    Attributes:
        peak_bytes: the most memory that the ranks' processes have held, including that of other sides of the world.
    """

    def __init__(
        self, world: World, options: StepsOptions, build: Build, *, warmup: int, batches: int = _BATCHES
    ) -> None:
        self.options, self.peak_bytes = options, 0
        self._workers = world.start(StepsWorker, options, build, batches)
        self._run(warmup)

    def run(self) -> float:
        """Runs the steps of one repeat; returns the seconds of the slowest rank."""
        return self._run(self.options.steps)

    def _run(self, steps: int) -> float:
        seconds = self._workers.seconds(StepsWorker.run, steps)
        self.peak_bytes = sum(self._workers.call(StepsWorker.peak_bytes))
        return seconds


class StepsWorker:
    """One rank's training step, and batches that are made in advance and used in turn."""

    def __init__(self, topology: Topology, options: StepsOptions, build: Build, batches: int = _BATCHES) -> None:
        self.topology, self._deterministic = topology, options.deterministic
        self._step = build(topology, options)
        made = [synthetic_batch(options, topology, number).to(topology.device) for number in range(batches)]
        self._batches = pairwise(cycle(made))

    def run(self, steps: int) -> None:
        """Trains some steps; collective."""
        devices.set_deterministic(self._deterministic)  # sides that differ in it take turns in one process
        losses = []
        for done in range(1, steps + 1):
            losses.append(self._step(*next(self._batches)))
            if done % READ_EVERY == 0 or done == steps:  # as in training
                self.topology.gather(torch.stack(losses)).cpu()
                losses.clear()

    def peak_bytes(self) -> int:
        """The most memory that this process has held, on its CUDA device or resident on the host."""
        return peak_bytes(self.topology.device)


def sharded_step(topology: Topology, options: StepsOptions, base: Base = "comirec_dr") -> Step:
    """The step of this project's trainer."""
    return build_recommender(topology, options, base).train_step


def build_recommender(
    topology: Topology,
    options: StepsOptions,
    base: Base = "comirec_dr",
    interests: int | None = None,
) -> Recommender:
    """This rank's part of a model in training, whose users all have K interests, the options' number by default."""
    interests = interests or options.interests
    model = Recommender(
        model=ModelConfig(base, dim=options.dim, interests=interests, score_scale=1.0, item_bias=False),
        catalogue=CatalogueConfig(headroom=0.0),
        store=InterestStoreConfig(),
        engine=options.engine,
        items=[options.items],
        n_buckets=options.n_buckets,
        users_per_bucket=options.users_per_bucket,
        seed=options.seed,
        topology=topology,
    )
    model.store.expand(torch.arange(len(model.store.counts)), interests, span=0)
    model.engine.train(True)
    return model


def plain_step(topology: Topology, options: StepsOptions) -> Step:
    """The same model in plain PyTorch: nn.Embedding with a dense gradient, and dense Adam over all parameters."""
    table = nn.Embedding(options.items, options.dim, device=topology.device)
    extractor = build_extractor(ModelConfig(dim=options.dim, interests=options.interests)).to(topology.device)
    stored = torch.randn(options.users, options.interests, options.dim, device=topology.device)
    optimizer = torch.optim.Adam([*table.parameters(), *extractor.parameters()])

    def step(batch: Batch, following: Batch) -> torch.Tensor:
        history, targets, negatives = (
            table(sequence.values()) for sequence in (batch.history, batch.targets, batch.negatives)
        )
        start = stored[batch.users]
        mask = torch.ones(start.shape[:2], dtype=torch.bool, device=start.device)
        padded_history, history_mask = pad(history, batch.history, longest(batch.host.history))
        interests = extractor(padded_history, history_mask, Start(Interests(start, mask)))
        loss = sampled_softmax(score_batch(batch, interests, targets, negatives).candidates)
        optimizer.zero_grad()
        (loss / batch.world_targets).backward()
        optimizer.step()
        return loss.detach()

    return step


def synthetic_batch(options: StepsOptions, topology: Topology, number: int) -> Batch:
    """This rank's slice of a global batch: users at even distances, items uniform over the catalogue."""
    draw = np.random.default_rng((options.seed, number))
    each = options.batch // options.ranks
    mine = slice(topology.rank * each, (topology.rank + 1) * each)
    histories, targets = (draw.integers(1, most + 1, options.batch) for most in (options.history, options.targets))
    negatives = _jagged(draw, options.items, np.array([options.negatives]))

    draw = np.random.default_rng((options.seed, number, topology.rank))
    owned = OwnedUsers(options.n_buckets, topology.buckets(options.n_buckets))
    gap = options.users_per_bucket * len(owned.buckets) // each
    return Batch(
        span=0,
        users=torch.from_numpy(owned.users(np.arange(each) * gap + draw.integers(gap, size=each))),
        history=_jagged(draw, options.items, histories[mine]),
        targets=_jagged(draw, options.items, targets[mine]),
        negatives=negatives,
        world_targets=int(targets.sum()),
        target_log_q=torch.zeros(int(targets[mine].sum())),  # uniform; they cost as much as any
        negative_log_q=torch.zeros(options.negatives),
    )


def _jagged(draw: np.random.Generator, items: int, lengths: np.ndarray) -> JaggedTensor:
    return JaggedTensor(torch.from_numpy(draw.integers(items, size=lengths.sum())), lengths=torch.from_numpy(lengths))
