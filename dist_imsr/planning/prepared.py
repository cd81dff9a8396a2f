"""The plan of a run over data that are there: their own users, items and interactions in the place of assumptions."""

from dataclasses import fields
from typing import NamedTuple

from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.table import grown_capacity
from dist_imsr.planning.config import LoadConfig, PlanConfig
from dist_imsr.planning.hardware import HardwareConfig
from dist_imsr.planning.load import Span, spans_of
from dist_imsr.planning.memory import Accounts
from dist_imsr.planning.placement import shard_of
from dist_imsr.planning.times import TimeModel
from dist_imsr.training.config import TrainConfig

_SECTIONS = {field.name for field in fields(PlanConfig)} & {field.name for field in fields(TrainConfig)}


class Prepared(NamedTuple):
    """The plan of a run over prepared data, as far as it tells bytes and seconds.

    Args:
        spans: of the world.
        accounts: a rank's memory.
        clock: predicts times.
    """

    spans: list[Span]
    accounts: Accounts
    clock: TimeModel


def plan_of(
    dataset: Dataset,
    config: TrainConfig,
    ranks: int,
    gpu: str,
    hardware: HardwareConfig | None = None,
    process: int = PlanConfig.process,
) -> Prepared:
    """Plans a run over prepared data on one machine.

    What the data tell of spans is taken from them; how many interests users gain, which they do not tell, is what
    `LoadConfig` assumes.

    Args:
        dataset: the prepared data.
        config: of the run.
        ranks: one for each device.
        gpu: the kind of device.
        hardware: figures in the place of its data sheet's.
        process: bytes of the host that each rank takes before it holds anything.

    Returns:
        The plan.
    """
    counts = [_counts(dataset, span) for span in range(dataset.spans)]
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
        capacity = grown_capacity(plan.catalogue.headroom, capacity, items[span.number], ranks)
        each = max(2.0, count / max(1, users))
        known = span._replace(items=items[span.number], capacity=capacity)
        spans.append(known._replace(users=max(1, users), interactions=each))
    accounts = Accounts(plan, spans, shard_of(plan))
    return Prepared(spans, accounts, TimeModel(plan, accounts))


def _counts(dataset: Dataset, span: int) -> tuple[int, int]:
    """Users who are active in a span, and their interactions."""
    parts = [dataset.sequences(span, bucket) for bucket in range(dataset.buckets)]
    return sum(len(part.users) for part in parts), sum(int(part.offsets[-1]) for part in parts)
