"""What does not fit, what would, and how far items, users and interests may grow before something gives way."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.planning.config import MOST_BUCKETS, PlanConfig
from dist_imsr.planning.load import spans_of, widest_block, widest_step
from dist_imsr.planning.memory import Accounts, Bytes, MemoryPhase, gradient_bucket, row_wise, total

_FARTHEST = 1 << 62
_INDEXED = 1 << 31  # numbers of a padded block that 32-bit indices of TorchRec's operators reach


class Shortfall(NamedTuple):
    """Something that does not fit.

    Args:
        resource: what gives way.
        needed: of it, at the most.
        had: of it.
        unit: of both; bytes are told in GB.
        when: it happens, and what takes most of it.
    """

    resource: str
    needed: float
    had: float
    unit: str
    when: str

    def __str__(self) -> str:
        needed, had = (
            f"{value / 1e9:,.1f} GB" if self.unit == "bytes" else f"{value:,.0f}{self.unit and f' {self.unit}'}"
            for value in (self.needed, self.had)
        )
        return f"{self.resource}: {needed} needed, {had} there{', ' * bool(self.when)}{self.when}"


class Refused(ValueError):
    """A plan that does not fit; its text says what would."""


def shortfalls(config: PlanConfig, measured: float = 1.0) -> list[Shortfall]:
    """All that does not fit, with row-wise blocks.

    Args:
        config: the command's.
        measured: as for `Accounts`.

    Returns:
        None of them if the plan fits.
    """
    spans, device = spans_of(config), config.device
    accounts = Accounts(config, spans, row_wise(config.ranks), measured)
    phases, usable = accounts.phases(), 1 - config.reserve
    found = list[Shortfall]()

    def compare(resource: str, had: int, held: Callable[[MemoryPhase], Bytes], times: int) -> None:
        worst = max(phases, key=lambda phase: total(held(phase)))
        needed = times * total(held(worst))
        if needed > had * usable:
            largest = max(held(worst), key=lambda name: held(worst)[name])
            when = f"{worst.name} in span {worst.span} ({largest} {times * held(worst)[largest] / 1e9:,.1f} GB)"
            found.append(Shortfall(resource, needed, had * usable, "bytes", when))

    if device.device == "cpu":
        compare("host memory of a node", device.host_memory, _both, config.gpus_per_node)
    else:
        compare("device memory", device.memory, lambda phase: phase.device, 1)
        compare("host memory of a node", device.host_memory, lambda phase: phase.host, config.gpus_per_node)
    table = accounts.table(spans[-1])[0]
    share = int(
        0.85 * (config.catalogue.planner_memory(device.memory) or 0)
    )  # TorchRec's planner reserves 15 %, and counts weights alone
    if device.device != "cpu" and table > share:
        found.append(Shortfall("TorchRec's planner", table, share, "bytes", "for the table's weights alone"))
    step = widest_step(config, spans)
    users = max(step.users, widest_block(config, step).users)
    padded = users * max(step.longest_history, step.longest_targets) * config.model.dim
    if padded >= _INDEXED:
        found.append(Shortfall("numbers of a padded batch", padded, _INDEXED, "", ""))
    return found


def refusal(config: PlanConfig, found: list[Shortfall], measured: float = 1.0) -> Refused:
    """Says what does not fit, and what would.

    Args:
        config: the command's.
        found: by `shortfalls`.
        measured: as for `Accounts`.

    Returns:
        The exception, in one line.
    """
    fitting = [told for told, changed in remedies(config) if not shortfalls(changed, measured)]
    nodes = smallest_nodes(config, measured)
    if nodes is not None:
        fitting.insert(0, f"--nodes {nodes}")
    would = f"it would fit with {', or '.join(fitting)}" if fitting else "no single change of those tried would do"
    return Refused(f"does not fit: {'; '.join(map(str, found))}; {would}")


def smallest_nodes(config: PlanConfig, measured: float = 1.0) -> int | None:
    """The fewest machines of the same kind that hold the plan.

    Args:
        config: the command's.
        measured: as for `Accounts`.

    Returns:
        How many; None if the most that there may be are too few.
    """

    def fits(nodes: int) -> bool:
        try:
            return not shortfalls(replace(config, nodes=nodes), measured)
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


def remedies(config: PlanConfig) -> Iterator[tuple[str, PlanConfig]]:
    """Single changes of a plan that may make it fit.

    Args:
        config: the command's.

    Yields:
        Arguments, and the plan with them.
    """
    if config.catalogue.device_memory is not None and config.device.device != "cpu":
        most = config.device.memory >> 20
        catalogue = replace(config.catalogue, device_memory=most)
        yield f"--catalogue.device_memory {most}", replace(config, catalogue=catalogue)
    for memory in ("host", "device"):
        if config.store.memory != memory and config.device.device != "cpu":
            yield f"--store.memory {memory}", replace(config, store=replace(config.store, memory=memory))
    if config.optimizer in ("adam", "adagrad"):
        catalogue = replace(config.catalogue, optimizer="rowwise_adagrad")
        yield "--catalogue.optimizer rowwise_adagrad", replace(config, catalogue=catalogue)
    if config.training.patience:
        yield "--training.patience 0", replace(config, training=replace(config.training, patience=0))
    if config.checkpoint.enabled:
        yield "--checkpoint.enabled false", replace(config, checkpoint=replace(config.checkpoint, enabled=False))
    if gradient_bucket(config):
        plain = EngineConfig().deepspeed
        name = Path(*plain.parts[-3:])
        yield f"--engine.deepspeed {name}", replace(config, engine=replace(config.engine, deepspeed=plain))
    size = config.batch.size // 2
    while size >= max(1, config.batch.size // 64):
        yield f"--batch.size {size}", replace(config, batch=replace(config.batch, size=size))
        size //= 2


class Limit(NamedTuple):
    """How far one number may grow.

    Args:
        key: that grows, all else as it is.
        now: its value.
        most: the largest that fits; None if nothing ever gives way.
        breaks: what does beyond it.
    """

    key: str
    now: int
    most: int | None
    breaks: str


def limits(config: PlanConfig, measured: float = 1.0) -> list[Limit]:
    """Grows items, users and interests, one at a time, until something gives way.

    Args:
        config: of a plan that fits.
        measured: as for `Accounts`.

    Returns:
        One limit each.
    """
    grown: dict[str, tuple[int, Callable[[int], PlanConfig]]] = {
        "items": (config.items, lambda items: replace(config, items=items)),
        "users": (config.users, lambda users: replace(config, users=users)),
        "model.interests": (
            config.model.interests,
            lambda count: replace(config, model=replace(config.model, interests=count)),
        ),
    }
    return [_limit(key, now, changed, measured) for key, (now, changed) in grown.items()]


def _limit(key: str, now: int, changed: Callable[[int], PlanConfig], measured: float) -> Limit:
    def broken(value: int) -> str:
        try:
            found = shortfalls(changed(value), measured)
        except ValueError as error:  # a value that its section refuses
            return str(error)
        return str(found[0]) if found else ""

    low, high = now, 2 * now
    while not (told := broken(high)):
        low, high = high, 2 * high
        if high > _FARTHEST:
            return Limit(key, now, None, "")
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        if why := broken(middle):
            high, told = middle, why
        else:
            low = middle
    return Limit(key, now, low, told)


def _both(phase: MemoryPhase) -> Bytes:
    """A rank's bytes where its device is the host itself."""
    return {name: phase.device.get(name, 0) + phase.host.get(name, 0) for name in {**phase.device, **phase.host}}
