"""Makes a plan: what is where, what travels, how long it takes, what gives way first."""

from typing import NamedTuple

from torchrec.distributed.planner.types import PlannerError

from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.dry_run import DryRun, dry_run
from dist_imsr.planning.limits import Limit, Refused, limits, refusal, shortfalls
from dist_imsr.planning.links import Link, links_of
from dist_imsr.planning.load import Span, Step, spans_of, step_of, widest_step
from dist_imsr.planning.memory import Accounts, MemoryPhase, activation_bytes
from dist_imsr.planning.placement import Placed, fused, place, shard_of
from dist_imsr.planning.times import Seconds, TimeModel


class Plan(NamedTuple):
    """Everything that is told of a run.

    Args:
        config: what was asked.
        spans: of the world.
        placed: the table at its largest, by TorchRec's planner.
        accounts: a rank's memory.
        phases: at which a rank may hold the most.
        widest: what a rank must be ready for in a step.
        shown: the pre-training span and the last trained one.
        steps: a rank's part of a training step of each of the two.
        links: of each of the two.
        seconds: terms of each of the two.
        span_seconds: of each trained span.
        fullest: times the mean share of known items, on the rank that owns most, in the span in which it is the most.
        limits: what breaks first.
        dry: what the dry run showed; None without it.
    """

    config: PlanConfig
    spans: list[Span]
    placed: Placed
    accounts: Accounts
    phases: list[MemoryPhase]
    widest: Step
    shown: list[int]
    steps: list[Step]
    links: list[dict[str, Link]]
    seconds: list[Seconds]
    span_seconds: list[Seconds]
    fullest: float
    limits: list[Limit]
    dry: DryRun | None


def make_plan(config: PlanConfig) -> Plan:
    """Plans a run.

    Args:
        config: the command's.

    Returns:
        The plan.

    Raises:
        Refused: if it does not fit, with what would; before the dry run where that would change nothing.
    """
    spans = spans_of(config)
    _refuse(config, 1.0)
    step = widest_step(config, spans)
    dry = dry_run(config, step) if config.dry_run else None
    measured = dry.activations / activation_bytes(config, dry.step) if dry else 1.0
    if dry:
        _refuse(config, measured)
    placed = _placed(config, spans[-1].capacity)
    accounts = Accounts(config, spans, shard_of(config), measured)
    clock, trained = TimeModel(config, accounts), spans[:-1]
    told = [trained[0], trained[-1]][: len(trained)]
    steps = [step_of(config, span) for span in told]
    return Plan(
        config,
        spans,
        placed,
        accounts,
        accounts.phases(),
        step,
        [span.number for span in told],
        steps,
        [links_of(config, part, accounts.weights, span.number > 0) for span, part in zip(told, steps, strict=True)],
        [clock.step(span) for span in told],
        [clock.span(span, spans[span.number + 1] if span.number else None) for span in trained],
        max(map(clock.fullest, spans)),
        limits(config, measured),
        dry,
    )


def _refuse(config: PlanConfig, measured: float) -> None:
    found = shortfalls(config, measured)
    if found:
        raise refusal(config, found, measured)


def _placed(config: PlanConfig, capacity: int) -> Placed:
    """TorchRec's answer, where it keeps rows in device memory."""
    try:
        placed = place(config, capacity)
    except PlannerError as error:
        raise Refused(f"does not fit: TorchRec's planner finds no place for the table ({error.error_type})") from error
    if not fused(placed):
        within = "device memory" if config.catalogue.device_memory is None else "catalogue.device_memory"
        raise Refused(
            f"does not fit: within {within} TorchRec's planner keeps the table on the host ({placed.kernel}): a run "
            "works that way, slower than any plan tells"
        )
    return placed
