"""One step of training as rank 0 of a world whose other ranks only seem to be there."""

import copy
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata
from torch.profiler import ProfilerActivity, profile, record_function
from torch.testing._internal.distributed.fake_pg import FakeStore

from dist_imsr.data.batch import Batch
from dist_imsr.data.jagged import jagged
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.distributed.topology import Topology, initialize_deepspeed
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.load import Step
from dist_imsr.planning.memory import gradient_bucket
from dist_imsr.strategies import build_strategy

_ROWS = 4096  # of the table on each rank, in the place of all
_USERS = 128  # of a rank's part of the step, where there are more
_CPU = torch.device("cpu")
MEASURED = "measured"


class DryRun(NamedTuple):
    """What the step showed.

    Args:
        ranks: that seemed to be there.
        rows: of the table on each of them.
        users: in rank 0's part of the step.
        step: its shape.
        activations: bytes that the step held at most beside the state that it began with, on the CPU.
        sent: bytes that rank 0 handed to other ranks in all-to-alls.
        exchanges: all-to-alls.
        seconds: for the world, the model and two steps.
    """

    ranks: int
    rows: int
    users: int
    step: Step
    activations: int
    sent: int
    exchanges: int
    seconds: float


def dry_run(config: PlanConfig, step: Step) -> DryRun:
    """Takes two steps of training of span 1 and looks at the second.

    torch's fake process group knows the world's size and moves nothing. What the other ranks would have sent is made
    up as if each of them did what this one does, so that sizes agree and ids are those of rows that this rank holds.
    What a strategy keeps beside the model sleeps, as in pre-training.

    Args:
        config: the command's.
        step: a rank's part of a step; its users are cut to 128, and the others in proportion.

    Returns:
        What was seen.

    Raises:
        RuntimeError: if this process is in a process group already, or an exchange's sizes do not agree.
    """
    begin, step = time.perf_counter(), shrunk(step, _USERS)
    with _world(config.ranks, config.gpus_per_node) as (topology, sent):
        with watched() as held:
            model = _model(config, step, topology)
            batch = _batch(step, _ROWS * topology.world_size, topology.world_size)
            model.update(batch)
            sent.clear()
            with record_function(MEASURED):
                model.update(batch)
        activations = held(gradient_bucket(config))
    seconds = time.perf_counter() - begin
    return DryRun(config.ranks, _ROWS, step.users, step, activations, sum(sent), len(sent), seconds)


def shrunk(step: Step, users: int) -> Step:
    """A step of fewer users.

    Args:
        step: of a rank.
        users: at most.

    Returns:
        The same lengths for each of them.
    """
    kept = min(step.users, users)
    history, targets = (-(-values * kept // step.users) for values in (step.history, step.targets))
    return step._replace(users=kept, history=history, targets=targets)


def _model(config: PlanConfig, step: Step, topology: Topology) -> Recommender:
    strategy, ranks = build_strategy(config.strategy), topology.world_size
    catalogue = replace(config.catalogue, headroom=0.0)
    if catalogue.optimizer == "adam":
        catalogue = replace(catalogue, optimizer="rowwise_adagrad")  # fused Adam does not exist on CPU
    model = Recommender(
        strategy.interests,
        strategy.companion(),
        *(config.model, catalogue, config.store, config.engine, config.ranking),
        items=[_ROWS * ranks],
        bucket_offsets=list(range(0, (ranks + 1) * step.users, step.users)),
        seed=0,
        topology=topology,
    )
    rows, first = torch.arange(step.users), config.model.interests
    model.store.expand(rows, first, span=0)
    if step.interests > first:
        model.store.expand(rows, step.interests - first, span=1)
    model.engine.train(True)
    return model


def _batch(step: Step, items: int, ranks: int) -> Batch:
    """Users of a rank with items over the whole catalogue, and one of the longest history and of the most targets."""
    draw = np.random.default_rng(0)

    def sequences(total: int, longest: int) -> Any:
        lengths = np.full(step.users, total // step.users)
        lengths[: total % step.users] += 1
        spare = lengths[1:] - 1  # the first user's are as many as there may be, at the cost of the others'
        missing = min(longest - lengths[0], spare.sum())
        taken = np.diff(np.minimum(np.cumsum(spare), missing), prepend=0)
        lengths[0] += missing
        lengths[1:] -= taken
        return jagged(draw.integers(items, size=lengths.sum()), lengths)

    negatives = draw.integers(items, size=step.negatives)
    negatives[0] = 0  # rank 0 is asked for a row of its own, however many ranks there are
    return Batch(
        span=1,
        users=torch.arange(step.users),
        history=sequences(step.history, step.longest_history),
        targets=sequences(step.targets, step.longest_targets),
        negatives=jagged(negatives, np.array([step.negatives])),
        world_targets=step.targets * ranks,
    )


@contextmanager
def _world(ranks: int, local: int) -> Iterator[tuple[Topology, list[int]]]:
    """A fake world of its own, and the bytes that each all-to-all would hand to other ranks."""
    if dist.is_initialized():
        raise RuntimeError("a dry run needs a process without a process group")
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(local)}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    sent, spoken = list[int](), dist.all_to_all_single

    def exchange(
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: list[int] | None = None,
        input_split_sizes: list[int] | None = None,
        group: dist.ProcessGroup | None = None,
        async_op: bool = False,
    ) -> Any:
        parts = []
        for name, tensor, sizes in (("output", output, output_split_sizes), ("input", input, input_split_sizes)):
            sizes = sizes or [len(tensor) // ranks] * ranks
            if len(sizes) != ranks or sum(sizes) != len(tensor):
                raise RuntimeError(f"an all-to-all's {name} of {len(tensor)} rows cannot be cut into {sizes}")
            parts.append(tensor.detach().split(sizes))
        work = spoken(output, input, output_split_sizes, input_split_sizes, group, async_op)
        mine = parts[1][0]  # the fake group leaves anything in the output
        for arrived in parts[0]:
            arrived.copy_(mine[torch.arange(len(arrived)) % len(mine)]) if len(mine) else arrived.zero_()
        sent.append((input.numel() - mine.numel()) * input.element_size())
        return work

    def gather_object(gathered: list[Any], mine: Any, group: dist.ProcessGroup | None = None) -> None:
        for rank in range(len(gathered)):
            gathered[rank] = _shifted(mine, rank)

    with (
        patch.dict(os.environ, place | address),
        patch.object(dist, "all_to_all_single", exchange),
        patch.object(dist, "all_gather_object", gather_object),
    ):
        dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
        try:
            initialize_deepspeed("gloo")
            yield Topology(0, ranks, local, _CPU), sent
        finally:
            dist.destroy_process_group()


def _shifted(mine: Any, rank: int) -> Any:
    """What another rank would tell of its shards: rows further on in the table."""
    theirs = copy.deepcopy(mine)
    if isinstance(theirs, ShardedTensorMetadata):
        for shard in theirs.shards_metadata:
            shard.shard_offsets[0] += rank * shard.shard_sizes[0]
            shard.placement = dist._remote_device(f"rank:{rank}/cpu")
        theirs.shards_metadata = [one for one in theirs.shards_metadata if one.shard_offsets[0] < theirs.size[0]]
    return theirs


@contextmanager
def watched() -> Iterator[Callable[[int], int]]:
    """Watches the host's memory, from before anything is allocated that what is measured gives back.

    Yields:
        To be called afterwards: the most bytes that were held at a time under ``record_function(MEASURED)``, beside
        those held when it began; blocks of the size that it is given do not count.
    """
    told = dict[str, Any]()

    def most(apart: int = 0) -> int:
        events = sorted(told["events"], key=lambda event: event.start_ns())
        begin = next(event.start_ns() for event in events if event.name() == MEASURED)
        sizes = [event.nbytes() for event in events if event.name() == "[memory]" and event.start_ns() >= begin]
        return int(np.cumsum([0, *(size for size in sizes if not apart or abs(size) != apart)]).max())

    with patch.dict(os.environ, KINETO_LOG_LEVEL="99"):  # else it tells that it begins and ends
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            yield most
    assert seen.profiler is not None
    results: Any = seen.profiler.kineto_results
    told["events"] = results.events()
