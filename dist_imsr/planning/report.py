"""A plan as tables, and as JSON."""

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

_GB = 1e9
_ROWS = 8  # of a table of spans, at the most


def show(plan: Plan, console: Console) -> None:
    """Prints a plan.

    Args:
        plan: to be told.
        console: where.
    """
    config, device, last = plan.config, plan.config.device, plan.spans[-1]
    rows = plan.placed.rows(config.ranks)
    console.print(
        f"{config.items:,} items, {config.users:,} users, {config.strategy.name} {config.model.base}, "
        f"d {config.model.dim}, on {config.nodes} x {config.gpus_per_node} {config.gpu}\n"
        f"TorchRec's planner: {plan.placed.sharding}, kernel {plan.placed.kernel}, {last.capacity:,} rows, "
        f"shards {len(plan.placed.shards)}, {max(rows):,} on the fullest rank, {min(rows):,} on the emptiest; the "
        f"fullest owns up to {plan.fullest:.2f} times the mean share of known items; optimizer {config.optimizer}",
        soft_wrap=True,
    )
    _show_memory(plan, console)
    _show_links(plan, console)
    _show_times(plan, console)
    for limit in plan.limits:
        console.print(_limit(limit), soft_wrap=True)
    if config.ranks > 64:
        console.print(f"data must be prepared with --buckets {config.ranks} or more", soft_wrap=True)
    dry = plan.dry
    if dry:
        console.print(
            f"dry run: one step of rank 0 of {dry.ranks} under torch's fake process group, on this machine's CPU, with "
            f"{dry.rows:,} rows of the table and {dry.users} of {plan.widest.users} users on each rank, took "
            f"{dry.seconds:.1f} s in all; it held {_gb(dry.activations)} GB beside its state and handed {dry.sent:,} "
            f"bytes to others in {dry.exchanges} all-to-alls",
            soft_wrap=True,
        )
    console.print(
        f"No device was asked. Bytes are counted{', activations measured in the dry run' if dry else ''}; times are "
        f"predicted from {device.memory_bandwidth / _GB:,.0f} GB/s of memory, {device.fp32 / 1e12:,.2f} fp32 and "
        f"{device.bf16 / 1e12:,.2f} bf16 TFLOP/s, {device.intra_node / _GB:,.1f} GB/s inside a machine and "
        f"{device.inter_node / _GB:,.2f} between machines, at {config.hardware.memory_efficiency:.0%}, "
        f"{config.hardware.compute_efficiency:.0%} and {config.hardware.link_efficiency:.0%}, "
        f"{device.latency * 1e6:.0f} us a message and {device.overhead * 1e3:.0f} ms a step beside. Interactions stay "
        f"in files, mapped into memory, and need none. Reading them, growing the table and writing checkpoints "
        f"are not timed.",
        soft_wrap=True,
    )


def write_json(plan: Plan, path: Path) -> None:
    """Writes a plan as one object, whole or not at all.

    Args:
        plan: to be told.
        path: the file; an older one is replaced.
    """
    write_whole(path, json.dumps(as_json(plan), indent=1) + "\n")


def as_json(plan: Plan) -> dict[str, Any]:
    """A plan as objects, lists, strings and numbers; bytes and seconds.

    Args:
        plan: to be told.

    Returns:
        The object.
    """
    return {
        "config": plain(dataclasses.asdict(plan.config)),
        "device": dataclasses.asdict(plan.config.device),
        "spans": [
            span._asdict()
            | {"table_bytes": sum(plan.accounts.table(span)), "interest_store_bytes": plan.accounts.store(span)}
            for span in plan.spans
        ],
        "sharding": plan.placed._asdict(),
        "phases": [phase._asdict() for phase in plan.phases],
        "steps": [
            {
                "span": number,
                "shape": step._asdict(),
                "links": {name: link._asdict() for name, link in links.items()},
                "seconds": seconds,
                "total_seconds": sum(seconds.values()),
            }
            for number, step, links, seconds in zip(plan.shown, plan.steps, plan.links, plan.seconds, strict=True)
        ],
        "span_seconds": [terms | {"total": sum(terms.values())} for terms in plan.span_seconds],
        "limits": [limit._asdict() for limit in plan.limits],
        "dry_run": plan.dry and plan.dry._asdict() | {"step": plan.dry.step._asdict()},
    }


def _show_memory(plan: Plan, console: Console) -> None:
    """What stays on a device in the first and the last trained span, and the moment that holds the most."""
    config = plan.config
    stays = [phase for phase in plan.phases if phase.name == "training"]
    worst = max(plan.phases, key=lambda phase: total(phase.device))
    columns = list({id(phase): phase for phase in (stays[0], stays[-1], worst)}.values())
    titles = [f"{'most: ' * (phase is worst)}{phase.name}, span {phase.span}" for phase in columns]
    table = Table("GB on the fullest rank", *(Column(title, justify="right") for title in titles))
    names = dict.fromkeys(name for phase in columns for name in phase.device)
    for name in names:
        table.add_row(name, *(_gb(phase.device[name]) if name in phase.device else "" for phase in columns))
    had = config.device.memory * (1 - config.reserve)
    title = "host, as the device" if config.device.device == "cpu" else f"device, of {_gb(had)}"
    table.add_row(title, *(_gb(total(phase.device)) for phase in columns), end_section=True)
    for name in dict.fromkeys(name for phase in columns for name in phase.host):
        table.add_row(f"host: {name}", *(_gb(phase.host[name]) if name in phase.host else "" for phase in columns))
    whole = config.gpus_per_node
    cpu = config.device.device == "cpu"
    table.add_row(
        f"host, ranks {whole}, of {_gb(config.device.host_memory * (1 - config.reserve))}",
        *(_gb(whole * (total(phase.host) + cpu * total(phase.device))) for phase in columns),
    )
    console.print(table)
    console.print(
        "interest store, GB a rank: "
        + ", ".join(f"{_gb(plan.accounts.store(plan.spans[number]))} after span {number}" for number in _some(plan)),
        soft_wrap=True,
    )


def _show_links(plan: Plan, console: Console) -> None:
    if plan.config.ranks == 1:
        return
    columns = [f"{way}, span {span}" for span in plan.shown for way in ("in a machine", "between machines")]
    table = Table("MB that a rank hands over in a step", *(Column(name, justify="right") for name in columns))
    for name in plan.links[0]:
        table.add_row(name, *(_mb(way) for links in plan.links for way in links[name][:2]))
    sums = [sum(link[way] for link in links.values()) for links in plan.links for way in (0, 1)]
    table.add_row("all", *map(_mb, sums))
    console.print(table)


def _show_times(plan: Plan, console: Console) -> None:
    table = Table(
        "ms of a step, predicted", *(Column(f"span {span}", justify="right") for span in plan.shown), "what binds"
    )
    for name in dict.fromkeys(name for terms in plan.seconds for name in terms):
        binds = [
            f"span {span}"
            for span, terms in zip(plan.shown, plan.seconds, strict=True)
            if name == max(terms, key=terms.__getitem__)
        ]
        table.add_row(name, *(f"{terms.get(name, 0.0) * 1e3:,.2f}" for terms in plan.seconds), ", ".join(binds))
    table.add_row("all", *(f"{sum(terms.values()) * 1e3:,.2f}" for terms in plan.seconds), "")
    console.print(table)
    names = list(plan.span_seconds[0])
    table = Table(
        "minutes of a span, predicted", *(Column(name, justify="right") for name in [*names, "all"]), "what binds"
    )
    for number in _some(plan):
        terms = plan.span_seconds[number]
        values = (*terms.values(), sum(terms.values()))
        table.add_row(f"span {number}", *(f"{value / 60:,.1f}" for value in values), max(terms, key=terms.__getitem__))
    console.print(table)


def _some(plan: Plan) -> list[int]:
    """The trained spans that are told: all, or some of them where they are many."""
    last = len(plan.span_seconds) - 1
    return sorted({round(last * part / (_ROWS - 1)) for part in range(_ROWS)})


def _limit(limit: Limit) -> str:
    if limit.most is None:
        return f"{limit.key}: nothing gives way, however many"
    more = f"{limit.most / limit.now:.1f} times as many"
    return f"{limit.key} alone may grow to {limit.most:,} ({more}); then gives way {limit.breaks}"


def _gb(value: float) -> str:
    return f"{value / _GB:,.3f}" if value < 10 * _GB else f"{value / _GB:,.1f}"


def _mb(value: float) -> str:
    return f"{value / 1e6:,.3f}"
