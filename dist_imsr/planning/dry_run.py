"""One training step as rank 0 of simulated ranks, which checks shapes and code paths at any world size."""

import copy
import os
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from dist_imsr.data.batch import Batch
from dist_imsr.data.jagged import jagged
from dist_imsr.distributed.library_internals import fake_store
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.distributed.topology import Topology, initialize_deepspeed
from dist_imsr.planning.config import PlanConfig
from dist_imsr.strategies import build_strategy
from dist_imsr.strategies.step_memory import Step

_ROWS = 4096  # of the table on each rank, instead of all
_USERS = 128  # of a rank, at most


class DryRun(NamedTuple):
    """What a dry run did.

    Args:
        ranks: of the simulated world.
        rows: of the table on each rank.
        users: in rank 0's share of the step.
        step: its shape.
        sent: bytes that rank 0 sent to other ranks in all-to-alls.
        exchanges: all-to-alls.
        seconds: for process group, model and step.
    """

    ranks: int
    rows: int
    users: int
    step: Step
    sent: int
    exchanges: int
    seconds: float


def dry_run(config: PlanConfig, step: Step) -> DryRun:
    """Takes a training step of span 1 with at most 128 users on this rank.

    Args:
        config: of the plan.
        step: a rank's share, of which shape the dry run is.

    Raises:
        RuntimeError: if this process is in a process group already, or sizes of an all-to-all do not agree.
    """
    begin, step = time.perf_counter(), shrunk(step, _USERS)
    with simulated_step(config, step) as take_step:
        sent = take_step()
    seconds = time.perf_counter() - begin
    return DryRun(config.ranks, _ROWS, step.users, step, sum(sent), len(sent), seconds)


def shrunk(step: Step, users: int) -> Step:
    """A step of at most so many users, with the same lengths of each."""
    kept = min(step.users, users)
    history, targets = (-(-numbers * kept // step.users) for numbers in (step.history, step.targets))
    return step._replace(users=kept, history=history, targets=targets)


@contextmanager
def simulated_step(config: PlanConfig, step: Step) -> Iterator[Callable[[], list[int]]]:
    """Builds rank 0's model and batch in a simulated world; a strategy's own state is as in pre-training.

    Yields:
        A function that takes a training step, and returns the bytes that each all-to-all sends to other ranks.
    """
    with _simulated_world(config.ranks, config.gpus_per_node) as (topology, sent):
        model, batch = _model(config, step, topology), _batch(step, config.ranks)
        strategy = build_strategy(config.strategy)

        def take_step() -> list[int]:
            sent.clear()
            model.train_step(batch, objective=strategy)
            return list(sent)

        yield take_step


def _model(config: PlanConfig, step: Step, topology: Topology) -> Recommender:
    catalogue = replace(config.catalogue, headroom=0.0)
    if catalogue.optimizer == "adam":
        catalogue = replace(catalogue, optimizer="rowwise_adagrad")  # fused Adam does not exist on CPU
    model = Recommender(
        model=config.model,
        catalogue=catalogue,
        store=config.store,
        engine=config.engine,
        items=[_ROWS * config.ranks],
        n_buckets=config.ranks,
        users_per_bucket=step.users,
        seed=0,
        topology=topology,
    )
    rows, first = torch.arange(step.users), config.model.interests
    model.store.expand(rows, first, span=0)
    if step.interests > first:
        model.store.expand(rows, step.interests - first, span=1)
    model.engine.train(True)
    return model


def _batch(step: Step, ranks: int) -> Batch:
    """Rank 0's users, with items over the whole catalogue."""
    random = np.random.default_rng(0)

    def draw(lengths: list[int]) -> Any:
        return jagged(random.integers(_ROWS * ranks, size=sum(lengths)), np.array(lengths))

    negatives = random.integers(_ROWS * ranks, size=step.negatives)
    negatives[0] = 0  # rank 0 looks up a row of its own, however many ranks there are
    return Batch(
        span=1,
        users=torch.arange(step.users) * ranks,
        history=draw(_lengths(step.users, step.history, step.longest_history)),
        targets=draw(_lengths(step.users, step.targets, step.longest_targets)),
        negatives=jagged(negatives, np.array([step.negatives])),
        world_targets=step.targets * ranks,
        target_log_q=torch.zeros(step.targets),
        negative_log_q=torch.zeros(step.negatives),
    )


def _lengths(users: int, total: int, longest: int) -> list[int]:
    """One user with the longest sequence, as far as all others keep one item; these share the rest evenly."""
    first, others = min(longest, total - (users - 1)), users - 1
    return [first, *((total - first) * (n + 1) // others - (total - first) * n // others for n in range(others))]


@contextmanager
def _simulated_world(ranks: int, local: int) -> Iterator[tuple[Topology, list[int]]]:
    """Torch's fake process group, which moves nothing; other ranks send what rank 0 sends to itself.

    So sizes agree, and ids that arrive are those of rows that rank 0 holds.

    Yields:
        Rank 0's topology, and the bytes that each all-to-all sends to other ranks.
    """
    if dist.is_initialized():
        raise RuntimeError("a dry run needs a process without a process group")
    sent, fake_all_to_all = list[int](), dist.all_to_all_single

    def all_to_all_single(
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: list[int] | None = None,
        input_split_sizes: list[int] | None = None,
        group: dist.ProcessGroup | None = None,
        async_op: bool = False,
    ) -> Any:
        received, sends = _split(output, output_split_sizes, ranks), _split(input, input_split_sizes, ranks)
        work = fake_all_to_all(output, input, output_split_sizes, input_split_sizes, group, async_op)
        own = sends[0]  # the fake group does not write to the output
        for part in received:
            part.copy_(own[torch.arange(len(part)) % len(own)]) if len(own) else part.zero_()
        sent.append((input.numel() - own.numel()) * input.element_size())
        return work

    def all_gather_object(gathered: list[Any], own: Any, group: dist.ProcessGroup | None = None) -> None:
        gathered[:] = [_metadata_of_rank(rank, own) for rank in range(len(gathered))]

    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(local)}
    with (
        _replaced(os.environ, variables | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}),
        _replaced(vars(dist), {"all_to_all_single": all_to_all_single, "all_gather_object": all_gather_object}),
    ):
        dist.init_process_group("fake", rank=0, world_size=ranks, store=fake_store())
        try:
            initialize_deepspeed("gloo")
            yield Topology(0, ranks, local, torch.device("cpu")), sent
        finally:
            dist.destroy_process_group()


def _split(tensor: torch.Tensor, sizes: list[int] | None, ranks: int) -> tuple[torch.Tensor, ...]:
    sizes = sizes or [len(tensor) // ranks] * ranks
    if len(sizes) != ranks or sum(sizes) != len(tensor):
        raise RuntimeError(f"{len(tensor)} rows of an all-to-all cannot be split into {sizes}")
    return tensor.detach().split(sizes)


def _metadata_of_rank(rank: int, own: Any) -> Any:
    """Another rank's metadata of a sharded tensor: the following rows of the table. All other objects are the same."""
    metadata = copy.deepcopy(own)
    if hasattr(metadata, "shards_metadata"):
        for shard in metadata.shards_metadata:
            shard.shard_offsets[0] += rank * shard.shard_sizes[0]
            shard.placement = type(shard.placement)(f"rank:{rank}/cpu")
        metadata.shards_metadata = [one for one in metadata.shards_metadata if one.shard_offsets[0] < metadata.size[0]]
    return metadata


@contextmanager
def _replaced(mapping: MutableMapping[str, Any], values: dict[str, Any]) -> Iterator[None]:
    """Sets entries of a mapping, such as a module's functions, and restores them."""
    before = {key: mapping[key] for key in values if key in mapping}
    mapping.update(values)
    try:
        yield
    finally:
        for key in values:
            del mapping[key]
        mapping.update(before)
