"""What each span brings to the world, and what of it a rank sees in a step."""

import math
from functools import reduce
from typing import NamedTuple

from dist_imsr.data.dataset import HELD_OUT, SHORTEST_SPLIT
from dist_imsr.distributed.table import grown_capacity
from dist_imsr.model.extractors import build_extractor
from dist_imsr.planning.config import PlanConfig
from dist_imsr.strategies import build_strategy


class Span(NamedTuple):
    """One span of the whole world.

    Args:
        number: 0 is the pre-training span.
        items: known when it ends.
        capacity: rows of the item table.
        users: with interactions in it.
        interactions: of each of them.
        before: interactions of earlier spans that a user's histories go back to, where all are learnt again.
        interests: in the store when it ends.
        most_interests: that one user may have by then.
    """

    number: int
    items: int
    capacity: int
    users: int
    interactions: float
    before: float
    interests: float
    most_interests: int


class Step(NamedTuple):
    """The mean rank's part of one training step.

    Args:
        users: B.
        history: items of all their histories.
        targets: A, of all of them.
        longest_history: L, to which histories are padded.
        longest_targets: T, to which targets are padded.
        negatives: that each rank fetches for itself: all share them, but nobody passes them on.
        interests: K, to which interests are padded.
    """

    users: int
    history: int
    targets: int
    longest_history: int
    longest_targets: int
    negatives: int
    interests: int

    @property
    def fetched(self) -> int:
        """Rows of the table that the rank asks for."""
        return self.history + self.targets + self.negatives


def spans_of(config: PlanConfig) -> list[Span]:
    """All spans of a run, the last of which is for testing alone.

    Args:
        config: the command's.

    Returns:
        ``config.spans + 1`` of them.
    """
    load, strategy = config.load, build_strategy(config.strategy)
    detector = strategy.interests.detector
    items = [
        max(1, round(config.items * (1 - load.new_items * (config.spans - span)))) for span in range(config.spans + 1)
    ]
    spans, capacity = list[Span](), 0
    for number in range(config.spans + 1):
        capacity = grown_capacity(config.catalogue.headroom, capacity, items[number], config.ranks)
        grown = min(number, config.spans - 1) if detector.enabled else 0
        first = config.model.interests
        mean = min(first + load.new_interests * load.active * grown, max(first, detector.k_max))
        most = min(first + detector.delta_k * grown, max(first, detector.k_max))
        share, each = (load.active, load.interactions) if number else (1.0, load.pretraining)
        joined = strategy.retrains and number > 0
        before = load.pretraining + (number - 1) * load.active * load.interactions if joined else 0.0
        told = math.ceil(config.users * share), each, before, config.users * mean, max(most, math.ceil(mean))
        spans.append(Span(number, items[number], capacity, *told))
    return spans


def step_of(config: PlanConfig, span: Span) -> Step:
    """A rank's part of a training step, if all users of the span have equally many interactions.

    Args:
        config: the command's.
        span: that is trained.

    Returns:
        The means over the random cuts.
    """
    users = math.ceil(min(config.batch.size, span.users) / config.ranks)
    if span.number and config.strategy.name == "ader" and config.strategy.ader.pool:
        users *= 1 + min(config.strategy.ader.exemplars, config.strategy.ader.pool * span.number)
    long = round(span.interactions)
    trained = max(2, long - (HELD_OUT if long >= SHORTEST_SPLIT else 0))
    longest, most = config.batch.max_history, config.batch.max_targets
    cuts, before = trained - 1, round(span.before)
    history = (_capped(before + cuts, longest) - _capped(before, longest)) / cuts
    targets = _capped(cuts, most) / cuts
    return Step(
        users,
        math.ceil(users * history),
        math.ceil(users * targets),
        min(longest, before + cuts),
        min(most, cuts),
        config.batch.negatives,
        span.most_interests,
    )


def _capped(last: int, cap: int) -> int:
    """The sum of min(n, cap) over n = 1 .. last."""
    rising = min(last, cap)
    return rising * (rising + 1) // 2 + cap * (last - rising)


def widest_step(config: PlanConfig, spans: list[Span]) -> Step:
    """What a rank must be ready for: the lengths of pre-training, with as many interests as there ever are.

    Args:
        config: the command's.
        spans: all.

    Returns:
        A step no smaller than any.
    """
    steps = [step_of(config, span) for span in spans[: max(1, len(spans) - 1)]]
    return reduce(lambda one, other: Step(*map(max, zip(one, other, strict=True))), steps)


def widest_block(config: PlanConfig, step: Step) -> Step:
    """What a rank must be ready for in validation and in writing back: more users at a time, one target each.

    Users of equally long histories share a block, so that one block has the longest.

    Args:
        config: the command's.
        step: the widest of training.

    Returns:
        A block as a step without negatives.
    """
    users = math.ceil(min(config.batch.eval_size, config.users) / config.ranks)
    return step._replace(
        users=users, history=users * step.longest_history, targets=users, longest_targets=1, negatives=0
    )


def epochs_of(config: PlanConfig, span: int) -> int:
    """For how many epochs a span is trained, if early stopping spares none.

    Args:
        config: the command's.
        span: 0 is the pre-training span.

    Returns:
        0 where the strategy leaves parameters as they are.
    """
    strategy, training = build_strategy(config.strategy), config.training
    if span == 0 or strategy.retrains:
        return training.epochs
    return training.incremental_epochs if strategy.trains(span) else 0


def widths(config: PlanConfig) -> tuple[int, int, int]:
    """What the base model keeps beside an interest, and its dense weights.

    Args:
        config: the command's.

    Returns:
        d_a of queries, m of states, and the number of dense weights.
    """
    extractor = build_extractor(config.model)
    return extractor.query_dim, extractor.state_dim, sum(weight.numel() for weight in extractor.parameters())
