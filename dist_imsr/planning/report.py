"""Prints a plan as tables, and writes it as JSON."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from dist_imsr.config import plain
from dist_imsr.files import write_whole
from dist_imsr.planning.limits import Limit
from dist_imsr.planning.memory import total
from dist_imsr.planning.plan import Plan
from dist_imsr.planning.times import Seconds

_GB = 1e9
_SHOWN_SPANS = 8  # at most, in a table of spans


def show(plan: Plan, console: Console) -> None:
    """Prints a plan."""
    config, spans = plan.memory.config, plan.memory.spans
    rows = plan.placed.rows(config.ranks)
    console.print(
        f"{config.items:,} items, {config.users:,} users, {config.strategy.name} {config.model.base}, "
        f"d {config.model.dim}, on {config.nodes} x {config.gpus_per_node} {config.gpu}\n"
        f"TorchRec's planner: {plan.placed.sharding}, kernel {plan.placed.kernel}, {spans[-1].capacity:,} rows, "
        f"shards {len(plan.placed.shards)}, {max(rows):,} rows on the fullest rank, {min(rows):,} on the emptiest; "
        f"optimizer {config.catalogue.optimizer}",
        soft_wrap=True,
    )
    _show_memory(plan, console)
    if config.ranks > 1:
        _show_links(plan, console)
    _show_times(plan, console)
    for limit in plan.limits:
        console.print(_sentence(limit), soft_wrap=True)
    if config.ranks > 64:
        console.print(f"data must be prepared with --buckets {config.ranks} or more", soft_wrap=True)
    if dry := plan.dry:
        console.print(
            f"dry run: one step of rank 0 of {dry.ranks} under torch's fake process group, on this machine's CPU, with "
            f"{dry.rows:,} rows of the table and {dry.users} users on each rank, took "
            f"{dry.seconds:.1f} s and sent {dry.sent:,} bytes to other ranks in {dry.exchanges} all-to-alls",
            soft_wrap=True,
        )
    console.print(
        f"Bytes are counted and times are predicted from data sheets and from {config.device.overhead * 1e3:.0f} ms of "
        "overhead a step (--hardware.*); no device was used. Interactions are mapped from files and need no memory. "
        "Reading them, growing the table and writing checkpoints are not timed.",
        soft_wrap=True,
    )


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan as objects, lists, strings and numbers, in bytes and seconds."""
    memory, config = plan.memory, plan.memory.config
    return {
        "config": plain(dataclasses.asdict(config)),
        "device": dataclasses.asdict(config.device),
        "spans": [
            span._asdict()
            | {"table_bytes": sum(memory.table_bytes(span)), "interest_store_bytes": memory.store_bytes(span)}
            for span in memory.spans
        ],
        "sharding": plan.placed._asdict(),
        "phases": [phase._asdict() for phase in memory.phases()],
        "steps": [
            {
                "span": step.span,
                "shape": step.shape._asdict(),
                "links": {name: link._asdict() for name, link in step.links.items()},
                "seconds": step.seconds,
                "total_seconds": sum(step.seconds.values()),
            }
            for step in plan.steps
        ],
        "span_seconds": [terms | {"total": sum(terms.values())} for terms in plan.span_seconds],
        "limits": [limit._asdict() for limit in plan.limits],
        "dry_run": plan.dry and plan.dry._asdict() | {"step": plan.dry.step._asdict()},
    }


def write_json(plan: Plan, path: Path) -> None:
    """Writes a plan as one object; replaces the file as a whole or leaves it as it was."""
    write_whole(path, json.dumps(as_json(plan), indent=1) + "\n")


def _table(title: str, columns: list[str], *more: str) -> Table:
    return Table(title, *(Column(name, justify="right") for name in columns), *more)


def _show_memory(plan: Plan, console: Console) -> None:
    """Training in the first and in the last trained span, and the phase that needs the most."""
    config, all_phases = plan.memory.config, plan.memory.phases()
    on_cpu = config.device.device == "cpu"
    training = [phase for phase in all_phases if phase.name == "training"]
    peak = max(all_phases, key=lambda phase: total(phase.device))
    phases = list({id(phase): phase for phase in (training[0], training[-1], peak)}.values())
    titles = [f"{'most: ' * (phase is peak)}{phase.name}, span {phase.span}" for phase in phases]
    table = _table("GB on the fullest rank", titles)
    for name in dict.fromkeys(name for phase in phases for name in phase.device):
        table.add_row(name, *(_gb(phase.device.get(name)) for phase in phases))
    device, host = (size * (1 - config.reserve) for size in (config.device.memory, config.device.host_memory))
    title = "host, as the device" if on_cpu else f"device, of {_gb(device)}"
    table.add_row(title, *(_gb(total(phase.device)) for phase in phases), end_section=True)
    for name in dict.fromkeys(name for phase in phases for name in phase.host):
        table.add_row(f"host: {name}", *(_gb(phase.host.get(name)) for phase in phases))
    needed = [config.gpus_per_node * (total(phase.host) + on_cpu * total(phase.device)) for phase in phases]
    table.add_row(f"host, ranks {config.gpus_per_node}, of {_gb(host)}", *map(_gb, needed))
    console.print(table)
    stores = [
        f"{_gb(plan.memory.store_bytes(plan.memory.spans[span]))} after span {span}" for span in _shown_spans(plan)
    ]
    console.print(f"interest store, GB a rank: {', '.join(stores)}", soft_wrap=True)


def _show_links(plan: Plan, console: Console) -> None:
    columns = [f"{way}, span {step.span}" for step in plan.steps for way in ("in a machine", "between machines")]
    table = _table("MB that a rank sends in a step", columns)
    for name in plan.steps[0].links:
        table.add_row(name, *(_mb(size) for step in plan.steps for size in step.links[name][:2]))
    sums = [sum(link[way] for link in step.links.values()) for step in plan.steps for way in (0, 1)]
    table.add_row("all", *map(_mb, sums))
    console.print(table)


def _show_times(plan: Plan, console: Console) -> None:
    table = _table("ms of a step, predicted", [f"span {step.span}" for step in plan.steps], "what binds")
    for name in dict.fromkeys(name for step in plan.steps for name in step.seconds):
        binds = [f"span {step.span}" for step in plan.steps if name == _largest(step.seconds)]
        table.add_row(name, *(_ms(step.seconds.get(name, 0.0)) for step in plan.steps), ", ".join(binds))
    table.add_row("all", *(_ms(sum(step.seconds.values())) for step in plan.steps), "")
    console.print(table)
    table = _table("minutes of a span, predicted", [*plan.span_seconds[0], "all"], "what binds")
    for span in _shown_spans(plan):
        terms = plan.span_seconds[span]
        minutes = [f"{seconds / 60:,.1f}" for seconds in (*terms.values(), sum(terms.values()))]
        table.add_row(f"span {span}", *minutes, _largest(terms))
    console.print(table)


def _shown_spans(plan: Plan) -> list[int]:
    """All trained spans, or some at even distances if there are many."""
    last = len(plan.span_seconds) - 1
    return sorted({round(last * part / (_SHOWN_SPANS - 1)) for part in range(_SHOWN_SPANS)})


def _sentence(limit: Limit) -> str:
    if limit.most is None:
        return f"{limit.key}: any number fits"
    times = f"{limit.most / limit.now:.1f} times as many"
    return f"{limit.key} alone may grow to {limit.most:,} ({times}); beyond that, {limit.breaks}"


def _largest(terms: Seconds) -> str:
    return max(terms, key=terms.__getitem__)


def _gb(size: float | None) -> str:
    if size is None:
        return ""
    return f"{size / _GB:,.3f}" if size < 10 * _GB else f"{size / _GB:,.1f}"


def _mb(size: float) -> str:
    return f"{size / 1e6:,.3f}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f}"
