"""Puts a plan together: memory, links, time and limits, from assumed spans or from those of prepared data."""

from dataclasses import fields
from typing import NamedTuple

from torchrec.distributed.planner.types import PlannerError

from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.table import grown_capacity
from dist_imsr.planning.config import LoadConfig, PlanConfig
from dist_imsr.planning.dry_run import DryRun, dry_run
from dist_imsr.planning.hardware import HardwareConfig
from dist_imsr.planning.limits import Limit, Refused, limits, refusal, shortfalls
from dist_imsr.planning.load import Span, spans_of, step_of, widest_step
from dist_imsr.planning.memory import MemoryModel
from dist_imsr.planning.placement import Placed, fused, place, shard_of
from dist_imsr.planning.times import Link, Seconds, TimeModel
from dist_imsr.strategies.step_memory import Step
from dist_imsr.training.config import TrainConfig

_SECTIONS = {field.name for field in fields(PlanConfig)} & {field.name for field in fields(TrainConfig)}


class PlannedStep(NamedTuple):
    """A training step on the mean rank.

    Args:
        span: whose step it is.
        shape: of the rank's share.
        links: traffic by collective.
        seconds: by term.
    """

    span: int
    shape: Step
    links: dict[str, Link]
    seconds: Seconds


class Plan(NamedTuple):
    """A plan of a run that fits.

    Args:
        memory: a rank's bytes, with the configuration and all spans.
        placed: the table at its largest, by TorchRec's planner.
        steps: of the pre-training span and of the last trained one.
        span_seconds: of each trained span.
        limits: how far items, users and interests may grow.
        dry: the dry run; None without it.
    """

    memory: MemoryModel
    placed: Placed
    steps: list[PlannedStep]
    span_seconds: list[Seconds]
    limits: list[Limit]
    dry: DryRun | None


def make_plan(config: PlanConfig) -> Plan:
    """Plans a run from the load that its configuration assumes.

    Raises:
        Refused: if it does not fit, before the dry run.
    """
    if found := shortfalls(config):
        raise refusal(config, found)
    spans = spans_of(config)
    placed, trained = _placed(config, spans[-1].capacity), spans[:-1]
    memory = MemoryModel(config, spans, shard_of(config))
    times = TimeModel(memory)
    return Plan(
        memory,
        placed,
        steps=[_planned_step(times, span) for span in dict.fromkeys((trained[0], trained[-1]))],
        span_seconds=[times.span_seconds(span, spans[span.number + 1] if span.number else None) for span in trained],
        limits=limits(config),
        dry=dry_run(config, widest_step(config, spans)) if config.dry_run else None,
    )


def _planned_step(times: TimeModel, span: Span) -> PlannedStep:
    shape = step_of(times.config, span)
    return PlannedStep(span.number, shape, times.links(span, shape), times.step_seconds(span, shape))


def _placed(config: PlanConfig, capacity: int) -> Placed:
    """TorchRec's placement, if it keeps rows in device memory."""
    try:
        placed = place(config, capacity)
    except PlannerError as error:
        raise Refused(f"does not fit: TorchRec's planner finds no place for the table ({error.error_type})") from error
    if not fused(placed):
        within = "device memory" if config.catalogue.device_memory is None else "catalogue.device_memory"
        raise Refused(
            f"does not fit: within {within} TorchRec's planner keeps the table on the host ({placed.kernel}): a run "
            "works that way, but slower than a plan predicts"
        )
    return placed


def plan_of(
    dataset: Dataset,
    config: TrainConfig,
    ranks: int,
    gpu: str,
    hardware: HardwareConfig | None = None,
    process: int = PlanConfig.process,
) -> TimeModel:
    """Plans memory and time of a run over prepared data on one machine.

    How many interests users gain is not in the data, and is what `LoadConfig` assumes.

    Args:
        dataset: the prepared data.
        config: of the run.
        ranks: one for each device.
        gpu: the kind of device.
        hardware: figures that replace those of its data sheet.
        process: bytes of host memory for Python and the libraries of each rank.
    """
    counts = [(entry.active_users, entry.interactions) for entry in dataset.entries]
    items, later = dataset.items_by_span, [(users, count) for users, count in counts[1:] if users]
    active = sum(users for users, _ in later) / max(1, len(later))
    load = LoadConfig(
        pretraining=max(2.0, counts[0][1] / max(1, counts[0][0])),
        active=max(1.0, active) / dataset.users,
        interactions=max(2.0, sum(count for _, count in later) / max(1, sum(users for users, _ in later))),
        new_items=(1 - items[0] / items[-1]) / max(1, dataset.spans - 1),
    )
    plan = PlanConfig(
        items=items[-1],
        users=dataset.users,
        gpus_per_node=ranks,
        gpu=gpu,  # type: ignore[arg-type]
        spans=max(1, dataset.spans - 1),
        dry_run=False,
        load=load,
        process=process,
        hardware=hardware or HardwareConfig(),
        **{name: getattr(config, name) for name in _SECTIONS},
    )
    spans, capacity = list[Span](), 0
    for span, (users, count) in zip(spans_of(plan), counts, strict=False):  # a plan has two spans at least
        known = items[span.number]
        capacity = grown_capacity(plan.catalogue.headroom, capacity, known, ranks)
        interactions = max(2.0, count / max(1, users))
        spans.append(span._replace(items=known, capacity=capacity, users=max(1, users), interactions=interactions))
    return TimeModel(MemoryModel(plan, spans, shard_of(plan)))
