"""What each span brings to all ranks, and a rank's share of it in a training step."""

import math
from functools import reduce
from typing import NamedTuple

from dist_imsr.data.held_out import HELD_OUT, SHORTEST_SPLIT
from dist_imsr.distributed.table import grown_capacity
from dist_imsr.planning.config import PlanConfig
from dist_imsr.strategies import resources_of
from dist_imsr.strategies.step_memory import Step


class Span(NamedTuple):
    """One span over all ranks.

    Args:
        number: 0 is the pre-training span.
        items: known when it ends.
        capacity: rows of the item table.
        users: with interactions in it.
        interactions: of each of these users.
        before: interactions of earlier spans in a user's history, under strategies that retrain on them.
        interests: in the store when it ends.
        most_interests: of one user by then.
    """

    number: int
    items: int
    capacity: int
    users: int
    interactions: float
    before: float
    interests: float
    most_interests: int


def spans_of(config: PlanConfig) -> list[Span]:
    """Derives the ``config.spans + 1`` spans of a run, of which the last is only tested."""
    load, resources, first = config.load, resources_of(config.strategy), config.model.interests
    detector, most = resources.detector, max(first, resources.detector.k_max)
    spans, capacity = list[Span](), 0
    for number in range(config.spans + 1):
        items = max(1, round(config.items * (1 - load.new_items * (config.spans - number))))
        capacity = grown_capacity(config.catalogue.headroom, capacity, items, config.ranks)
        expansions = min(number, config.spans - 1) if detector.enabled else 0
        mean = min(first + load.new_interests * load.active * expansions, most)
        joined = resources.writes_all_users and number > 0
        spans.append(
            Span(
                number=number,
                items=items,
                capacity=capacity,
                users=math.ceil(config.users * (load.active if number else 1.0)),
                interactions=load.interactions if number else load.pretraining,
                before=load.pretraining + (number - 1) * load.active * load.interactions if joined else 0.0,
                interests=config.users * mean,
                most_interests=max(min(first + detector.delta_k * expansions, most), math.ceil(mean)),
            )
        )
    return spans


def step_of(config: PlanConfig, span: Span) -> Step:
    """A rank's share of a training step if all users of the span have equally many interactions.

    A history is cut at random before each target, so that its length is a mean over the cuts.
    """
    batch, resources = config.batch, resources_of(config.strategy)
    users = math.ceil(min(batch.size, span.users) / config.ranks)
    users *= 1 + min(resources.replayed, resources.pool * span.number)
    interactions, before = round(span.interactions), round(span.before)
    cuts = max(2, interactions - (HELD_OUT if interactions >= SHORTEST_SPLIT else 0)) - 1
    history = (_capped_sum(before + cuts, batch.max_history) - _capped_sum(before, batch.max_history)) / cuts
    return Step(
        users=users,
        history=math.ceil(users * history),
        targets=math.ceil(users * (_capped_sum(cuts, batch.max_targets) / cuts)),
        longest_history=min(batch.max_history, before + cuts),
        longest_targets=min(batch.max_targets, cuts),
        negatives=batch.negatives,
        interests=span.most_interests,
    )


def _capped_sum(last: int, cap: int) -> int:
    """The sum of min(n, cap) over n = 1 .. last."""
    rising = min(last, cap)
    return rising * (rising + 1) // 2 + cap * (last - rising)


def widest_step(config: PlanConfig, spans: list[Span]) -> Step:
    """A step no smaller than any: the lengths of pre-training with the interests of the last trained span."""
    steps = [step_of(config, span) for span in spans[: max(1, len(spans) - 1)]]
    return reduce(lambda one, other: Step(*map(max, zip(one, other, strict=True))), steps)


def widest_block(config: PlanConfig, step: Step) -> Step:
    """The widest block of validation and write-back, which have more users but one target each and no negatives.

    Users of equally long histories share a block, so that all histories of one block are the longest.
    """
    users = math.ceil(min(config.batch.eval_size, config.users) / config.ranks)
    return step._replace(
        users=users, history=users * step.longest_history, targets=users, longest_targets=1, negatives=0
    )


def epochs_of(config: PlanConfig, span: int) -> int:
    """The epochs of a span without early stopping; 0 where the strategy trains no parameters."""
    resources, training = resources_of(config.strategy), config.training
    if span == 0 or resources.retrains:
        return training.epochs
    return training.incremental_epochs if resources.trains else 0
