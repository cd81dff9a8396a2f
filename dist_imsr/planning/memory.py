"""Bytes that the fullest rank holds in each phase of each span: what stays, and what stands twice for a while."""

import math
from collections.abc import Callable
from typing import NamedTuple

from dist_imsr.distributed.columns import PART
from dist_imsr.distributed.engine import read_settings
from dist_imsr.distributed.interest_store import DRAWN
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.load import Span, Step, epochs_of, widest_block, widest_step, widths
from dist_imsr.strategies import build_strategy

Bytes = dict[str, int]  # by what they are for
Shard = Callable[[int], int]  # rows of a table -> those of the fullest rank

_FLOAT, _LONG, _SHORT = 4, 8, 2
TABLES = {"ader": 1, "sml": 2}  # that a strategy keeps beside the model's own, without optimizer state
_DRAW = 30  # bytes for each float32 of new interests while they are drawn: float64 and 64 random bits, several times
_MOVED = 24  # bytes for each interest while interests move: where they lie, in int64
_INDEXED = 112  # bytes for each user of a span, for where their interactions lie and the order of an epoch
_BUCKET = 500_000_000  # DeepSpeed's reduce_bucket_size, in numbers


class MemoryPhase(NamedTuple):
    """A moment of a run, as the fullest rank sees it.

    Args:
        span: 0 is the pre-training span.
        name: of the moment.
        device: bytes of device memory.
        host: bytes of this rank on its machine, beside the device's.
    """

    span: int
    name: str
    device: Bytes
    host: Bytes


def row_wise(ranks: int) -> Shard:
    """TorchRec's row-wise blocks.

    Args:
        ranks: over which a table is cut.

    Returns:
        Rows of a table -> rows of the first rank, of which none has more.
    """
    return lambda rows: -(-rows // ranks)


def optimizer_width(optimizer: str, dim: int) -> int:
    """Numbers of state for each row of the table, in float32.

    Args:
        optimizer: as `CatalogueConfig.optimizer_on` names it.
        dim: d.

    Returns:
        Two moments of d for Adam, one for Adagrad, one number for row-wise Adagrad, none for SGD.
    """
    return {"adam": 2 * dim, "adagrad": dim, "rowwise_adagrad": 1, "sgd": 0}[optimizer]


def gradient_bucket(config: PlanConfig) -> int:
    """What ZeRO 1 and 2 allocate in each backward pass, however few weights there are.

    Args:
        config: the command's.

    Returns:
        Bytes; two buckets with ``overlap_comm``, none without ZeRO.
    """
    zero = read_settings(config.engine.deepspeed).get("zero_optimization", {})
    if not zero.get("stage", 0) or not zero.get("contiguous_gradients", True):
        return 0
    return int(zero.get("reduce_bucket_size", _BUCKET)) * _FLOAT * (2 if zero.get("overlap_comm") else 1)


def activation_bytes(config: PlanConfig, step: Step) -> int:
    """What a step of training holds at most beside its state, estimated from its shapes.

    The coefficients are those of this project's own steps on the CPU, rounded up: embeddings that are exchanged, padded
    and mapped, with their gradients; routing weights or attention; scores of targets and negatives, four at a time.

    Args:
        config: the command's.
        step: a rank's part.

    Returns:
        Bytes.
    """
    dim, users, slots = config.model.dim, step.users, step.interests
    places = users * step.longest_history
    model = config.model
    inside = {"mimn": 8 * (model.mimn.memory + model.mimn.induction), "limarec": 4 * model.limarec.features}
    exchanged, mapped = 3 * step.fetched * dim, 3 * places * dim
    routed = places * slots * inside.get(model.base, 5)
    asked = users * step.longest_targets * (dim + 4 * slots)
    scored = 4 * step.targets * step.negatives
    return _FLOAT * (exchanged + mapped + routed + asked + scored)


def total(held: Bytes) -> int:
    """The sum of what is held.

    Args:
        held: by what it is for.

    Returns:
        Bytes.
    """
    return sum(held.values())


class Accounts:
    """A rank's bytes over the spans.

    Args:
        config: the command's.
        spans: all.
        shard: rows of a table on the fullest rank.
        measured: activations that a step was seen to hold, over those that `activation_bytes` tells of it.
    """

    def __init__(self, config: PlanConfig, spans: list[Span], shard: Shard, measured: float = 1.0) -> None:
        self.config, self.spans, self.shard, self.dim = config, spans, shard, config.model.dim
        self.queries, self.states, self.weights = widths(config)
        step = widest_step(config, spans)
        both = step, widest_block(config, step)
        self.activations = math.ceil(max(activation_bytes(config, one) for one in both) * measured)
        policy = build_strategy(config.strategy).interests
        self._trims = policy.detector.enabled and policy.trimmer.trim
        self._detects_each_epoch = policy.detector.enabled and policy.detector.each_epoch
        self._looks_back = build_strategy(config.strategy).retrains or config.strategy.name == "ader"
        self.stage = read_settings(config.engine.deepspeed).get("zero_optimization", {}).get("stage", 0)

    def phases(self) -> list[MemoryPhase]:
        """Every moment at which a rank may hold the most.

        Returns:
            In the order of the run.
        """
        phases = list[MemoryPhase]()
        for span in self.spans:
            before = self.spans[max(0, span.number - 1)]
            if span.number and span.capacity > before.capacity:
                phases.append(self._growing(before, span))
            if span is not self.spans[-1] or len(self.spans) == 1:
                phases += [self._admitting(before, span), self._training(span)]
                if span.number and self._trims:
                    phases.append(self._trimming(span))
        return phases

    def table(self, span: Span) -> tuple[int, int]:
        """The item table in a span.

        Args:
            span: at hand.

        Returns:
            Bytes of its weights and of the optimizer's state.
        """
        rows = self.shard(span.capacity)
        return rows * self.dim * _FLOAT, rows * optimizer_width(self.config.optimizer, self.dim) * _FLOAT

    def store(self, span: Span) -> int:
        """The interests of a rank's users when a span ends, and where each user's begin.

        Args:
            span: at hand.

        Returns:
            Bytes.
        """
        return self._slots(span) * self._slot + (self._users + 1) * _LONG

    def on_device(self, tables: Span, interests: Span) -> bool:
        """Where the interest store is, as the store itself chooses where early stopping holds no copy yet.

        Args:
            tables: the span whose item table stands beside it.
            interests: the span whose interests are in it when it ends.

        Returns:
            True for the device's memory, false for the host's.
        """
        device = self.config.device
        if device.device == "cpu":
            return True
        weights, state = self.table(tables)
        held = weights + state + self.dense() + self._copies(tables) * weights
        return self.config.store.fits(self.store(interests), round(device.memory * (1 - self.config.reserve)) - held)

    def dense(self) -> int:
        """Dense weights, gradients and Adam's moments; under ZeRO a rank's part of these and of a copy of the weights.

        Returns:
            Bytes.
        """
        part = 3 * math.ceil(self.weights / self.config.ranks) if self.stage else 2 * self.weights
        return _FLOAT * (2 * self.weights + part)

    def snapshot(self, span: Span) -> int:
        """A copy of what early stopping goes back to: rows of known items, dense weights, queries.

        Args:
            span: at hand.

        Returns:
            Bytes.
        """
        known = min(self.shard(span.capacity), span.items)
        row = self.dim + optimizer_width(self.config.optimizer, self.dim)
        queries = self._slots(span) * (self.queries + min(self.queries, 1))
        return _FLOAT * (known * row + queries) + self.dense() - _FLOAT * self.weights

    @property
    def _users(self) -> int:
        return math.ceil(self.config.users / self.config.ranks)

    @property
    def _slot(self) -> int:
        """Bytes of an interest in the store."""
        return _FLOAT * (self.dim + self.queries + min(self.queries, 1) + self.states) + _SHORT

    def _slots(self, span: Span) -> int:
        return math.ceil(span.interests / self.config.ranks)

    def _copies(self, tables: Span) -> int:
        """How many tables the strategy keeps beside the model's."""
        return TABLES.get(self.config.strategy.name, 0) if tables.number else 0

    def _held(self, tables: Span, interests: Span) -> tuple[Bytes, Bytes]:
        """What stays on the device and on the host, with the table of one span and the interests of another."""
        weights, state = self.table(tables)
        device = {"item table": weights, "optimizer state": state, "dense weights": self.dense()}
        copies = self._copies(tables)
        if copies:
            device["strategy's tables"] = copies * weights
        opened = tables.number + 1 if self._looks_back else 1
        host = {"process": self.config.process, "spans' index": opened * self._users * _INDEXED}
        (device if self.on_device(tables, interests) else host)["interest store"] = self.store(interests)
        if self.config.checkpoint.enabled:
            host["checkpoint's copy"] = self._checkpoint(tables, interests) + copies * weights
        return device, host

    def _checkpoint(self, tables: Span, interests: Span) -> int:
        """What is copied to be written: all that is trained, and the best epoch's where it is another."""
        store = self.store(interests) + self._slots(interests) * _LONG  # each interest with its user
        both = self.config.training.patience > 0
        twice = both and (self.queries > 0 or self._detects_each_epoch)
        best = self.snapshot(tables) if both and self.config.gpu != "cpu" else 0  # on a CPU it is shared
        return sum(self.table(tables)) + self.dense() + (1 + twice) * store + best

    def _growing(self, before: Span, span: Span) -> MemoryPhase:
        """The new table stands beside the old one; rows arrive from their old ranks a tensor at a time."""
        device, host = self._held(before, before)
        weights, state = self.table(span)
        device |= {"grown table": weights + state, "rows that arrive": weights}
        if self.config.training.patience and self.config.checkpoint.enabled:
            device["copy for early stopping"] = self.snapshot(before)  # which a checkpoint may still be read from
        return MemoryPhase(span.number, "growing the table", device, host)

    def _admitting(self, before: Span, span: Span) -> MemoryPhase:
        """The store is made anew beside the old one, as it is where there is no room, and new interests are drawn."""
        device, host = self._held(span, before)
        drawn = math.ceil((span.interests - (before.interests if span.number else 0)) / self.config.ranks)
        own = device if self.on_device(span, span) else host
        own["interest store"] = self.store(before) if span.number else (self._users + 1) * _LONG
        own["grown store"] = self._slots(span) * (self._slot + _MOVED)
        own["interests that are drawn"] = min(drawn, DRAWN) * max(self.dim, self.queries) * _DRAW
        return MemoryPhase(span.number, "new interests", device, host)

    def _training(self, span: Span) -> MemoryPhase:
        """The best epoch's copy goes before a better one is made."""
        device, host = self._held(span, span)
        device["activations"] = self.activations
        if gradient_bucket(self.config):
            device["ZeRO's gradient bucket"] = gradient_bucket(self.config)
        if self.config.training.patience and epochs_of(self.config, span.number):
            device["copy for early stopping"] = self.snapshot(span)
        device["ranking's tiles"] = self.config.ranking.memory << 20
        return MemoryPhase(span.number, "training", device, host)

    def _trimming(self, span: Span) -> MemoryPhase:
        """What stays of the interests moves inside the store."""
        device, host = self._held(span, span)
        own, kind = (device, self.config.device.device) if self.on_device(span, span) else (host, "cpu")
        own["interests that move"] = self._slots(span) * _MOVED + PART[kind]
        if self.config.training.patience:
            device["copy for early stopping"] = self.snapshot(span)
        return MemoryPhase(span.number, "trimming", device, host)
