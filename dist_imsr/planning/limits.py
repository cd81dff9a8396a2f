"""What does not fit, what would fit, and how far items, users and interests may grow."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.planning.config import MOST_BUCKETS, PlanConfig
from dist_imsr.planning.load import spans_of, widest_block, widest_step
from dist_imsr.planning.memory import Bytes, MemoryModel, MemoryPhase, row_wise, total
from dist_imsr.planning.placement import planner_memory
from dist_imsr.strategies.step_memory import gradient_bucket

_FARTHEST = 1 << 62
_INDEXED = 1 << 31  # numbers of a padded block that 32-bit indices of TorchRec's operators reach
_PLANNER_SHARE = 0.85  # of the memory, that TorchRec's planner gives to tables; it counts weights alone


class Shortfall(NamedTuple):
    """A resource that is exceeded, by its largest use.

    Args:
        resource: its name.
        needed: at most.
        available: of it.
        unit: of both; bytes are printed in GB.
        when: the phase that needs it, and the largest part.
    """

    resource: str
    needed: float
    available: float
    unit: str = ""
    when: str = ""

    def __str__(self) -> str:
        if self.unit == "bytes":
            needed, available = (f"{value / 1e9:,.1f} GB" for value in (self.needed, self.available))
        else:
            needed, available = (f"{value:,.0f}" for value in (self.needed, self.available))
        return f"{self.resource}: {needed} needed, {available} there" + (f", {self.when}" if self.when else "")


class Refused(ValueError):
    """A plan that does not fit; the text says what would."""


def shortfalls(config: PlanConfig) -> list[Shortfall]:
    """Everything that does not fit under row-wise sharding; empty if the plan fits."""
    spans, device = spans_of(config), config.device
    memory = MemoryModel(config, spans, row_wise(config.ranks))
    phases, usable, found = memory.phases(), 1 - config.reserve, list[Shortfall]()

    def compare(resource: str, available: int, bytes_of: Callable[[MemoryPhase], Bytes], ranks: int) -> None:
        peak = max(phases, key=lambda phase: total(bytes_of(phase)))
        parts = bytes_of(peak)
        needed = ranks * total(parts)
        if needed > available * usable:
            largest = max(parts, key=lambda name: parts[name])
            when = f"{peak.name} in span {peak.span} ({largest} {ranks * parts[largest] / 1e9:,.1f} GB)"
            found.append(Shortfall(resource, needed, available * usable, "bytes", when))

    if device.device == "cpu":
        compare("host memory of a node", device.host_memory, _device_and_host, config.gpus_per_node)
    else:
        compare("device memory", device.memory, lambda phase: phase.device, 1)
        compare("host memory of a node", device.host_memory, lambda phase: phase.host, config.gpus_per_node)
    weights, _ = memory.table_bytes(spans[-1])
    share = int(_PLANNER_SHARE * (planner_memory(config) or 0))
    if device.device != "cpu" and weights > share:
        found.append(Shortfall("TorchRec's planner", weights, share, "bytes", "for the table's weights alone"))
    step = widest_step(config, spans)
    users = max(step.users, widest_block(config, step).users)
    padded = users * max(step.longest_history, step.longest_targets) * config.model.row_width
    if padded >= _INDEXED:
        found.append(Shortfall("numbers of a padded batch", padded, _INDEXED))
    return found


def _device_and_host(phase: MemoryPhase) -> Bytes:
    names = {**phase.device, **phase.host}
    return {name: phase.device.get(name, 0) + phase.host.get(name, 0) for name in names}


def refusal(config: PlanConfig, found: list[Shortfall]) -> Refused:
    """An exception that says in one line what does not fit, and which single changes would fit."""
    fitting = [arguments for arguments, changed in _remedies(config) if not shortfalls(changed)]
    nodes = smallest_nodes(config)
    if nodes is not None:
        fitting.insert(0, f"--nodes {nodes}")
    would = f"it would fit with {', or '.join(fitting)}" if fitting else "no single change of those tried would do"
    return Refused(f"does not fit: {'; '.join(map(str, found))}; {would}")


def smallest_nodes(config: PlanConfig) -> int | None:
    """The fewest machines of the same kind on which the plan fits; None if no allowed number is enough."""

    def fits(nodes: int) -> bool:
        try:
            return not shortfalls(replace(config, nodes=nodes))
        except ValueError:  # more ranks than buckets
            return False

    most = 1
    while not fits(most):
        most *= 2
        if most * config.gpus_per_node > MOST_BUCKETS:
            return None
    few = most // 2
    while most - few > 1:
        middle = (few + most) // 2
        few, most = (few, middle) if fits(middle) else (middle, most)
    return most


def _changed(config: PlanConfig, key: str, value: Any) -> PlanConfig:
    """The plan with another value of a dotted key."""
    section, _, field = key.rpartition(".")
    return replace(
        config, **{section: replace(getattr(config, section), **{field: value})} if section else {key: value}
    )


def _remedies(config: PlanConfig) -> Iterator[tuple[str, PlanConfig]]:
    """Single changes that may make a plan fit: arguments, and the plan with them."""
    changes = list[tuple[str, Any]]()
    if config.device.device != "cpu":
        if config.catalogue.device_memory is not None:
            changes.append(("catalogue.device_memory", config.device.memory >> 20))
        changes += [("store.memory", memory) for memory in ("host", "device") if config.store.memory != memory]
    if config.catalogue.optimizer in ("adam", "adagrad"):
        changes.append(("catalogue.optimizer", "rowwise_adagrad"))
    if config.training.patience:
        changes.append(("training.patience", 0))
    if config.checkpoint.enabled:
        changes.append(("checkpoint.enabled", False))
    if gradient_bucket(config.engine):
        changes.append(("engine.deepspeed", EngineConfig().deepspeed))
    halves = (config.batch.size >> times for times in range(1, 7))
    changes += [("batch.size", size) for size in halves if size]
    for key, value in changes:
        shown = Path(*value.parts[-3:]) if isinstance(value, Path) else str(value)
        yield f"--{key} {str(shown).lower() if value is False else shown}", _changed(config, key, value)


class Limit(NamedTuple):
    """How far one number may grow with all others as they are.

    Args:
        key: of the number.
        now: its value.
        most: the largest value that fits; None if all do.
        breaks: what does not fit beyond it.
    """

    key: str
    now: int
    most: int | None
    breaks: str


def limits(config: PlanConfig) -> list[Limit]:
    """Grows items, users and interests of a plan that fits, one at a time, until it no longer fits."""
    now = {"items": config.items, "users": config.users, "model.interests": config.model.interests}
    return [_limit(config, key, value) for key, value in now.items()]


def _limit(config: PlanConfig, key: str, now: int) -> Limit:
    def reason(value: int) -> str:
        """Why a value does not fit; empty if it does."""
        try:
            found = shortfalls(_changed(config, key, value))
        except ValueError as error:  # a value that its section refuses
            return str(error)
        return str(found[0]) if found else ""

    low, high = now, 2 * now
    while not (breaks := reason(high)):
        low, high = high, 2 * high
        if high > _FARTHEST:
            return Limit(key, now, None, "")
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        if why := reason(middle):
            high, breaks = middle, why
        else:
            low = middle
    return Limit(key, now, low, breaks)
