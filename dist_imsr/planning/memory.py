"""Bytes on the fullest rank in each phase of each span, with what exists twice for a while."""

import math
from collections.abc import Callable
from typing import NamedTuple

from dist_imsr.distributed.columns import PART
from dist_imsr.distributed.engine import read_settings
from dist_imsr.distributed.interest_store import DRAWN
from dist_imsr.distributed.rows import EXCHANGED
from dist_imsr.model.extractors import build_extractor
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.load import Span, epochs_of, widest_block, widest_step
from dist_imsr.strategies import resources_of
from dist_imsr.strategies.step_memory import activation_bytes, gradient_bucket

Bytes = dict[str, int]  # by purpose
Shard = Callable[[int], int]  # rows of a table -> rows of the fullest rank

_FLOAT, _LONG, _SHORT = 4, 8, 2
_DRAW = 30  # bytes per float32 of a new interest while it is drawn, in float64 and from 64 random bits
_MOVED = 24  # bytes of int64 positions per interest while interests move inside the store
_MET = 64  # bytes of positions, ages and scores per earlier interaction of tested users
_INDEXED = 120  # bytes per user of a span for the positions of their interactions and the order of an epoch


class MemoryPhase(NamedTuple):
    """The memory of the fullest rank at one moment of a run.

    Args:
        span: 0 is the pre-training span.
        name: of the phase.
        device: bytes of device memory.
        host: bytes of host memory, besides the device's.
    """

    span: int
    name: str
    device: Bytes
    host: Bytes


def row_wise(ranks: int) -> Shard:
    """The rows of the first rank, of which no rank has more, under TorchRec's row-wise sharding."""
    return lambda rows: -(-rows // ranks)


def optimizer_width(optimizer: str, dim: int) -> int:
    """Numbers of float32 state per row of the table: Adam has two moments of d, row-wise Adagrad one number."""
    return {"adam": 2 * dim, "adagrad": dim, "rowwise_adagrad": 1, "sgd": 0}[optimizer]


def total(memory: Bytes) -> int:
    """The sum over all purposes."""
    return sum(memory.values())


class MemoryModel:
    """Counts a rank's bytes over the spans.

    Args:
        config: of the plan.
        spans: all.
        shard: rows of a table -> rows of the fullest rank.
    """

    def __init__(self, config: PlanConfig, spans: list[Span], shard: Shard) -> None:
        self.config, self.spans, self.shard = config, spans, shard
        self.dim, self.width = config.model.dim, config.model.row_width
        self.extractor, self.resources = build_extractor(config.model), resources_of(config.strategy)
        self.weights = sum(weight.numel() for weight in self.extractor.parameters())
        step = widest_step(config, spans)
        steps = step, widest_block(config, step)
        self.activations = max(activation_bytes(self.width, self.extractor, one) for one in steps)
        self._users = math.ceil(config.users / config.ranks)
        state = optimizer_width(config.catalogue.optimizer, self.width)
        self._row = self.width + state  # numbers per item
        queries = self.extractor.query_dim
        self._queries = queries + min(queries, 1)  # with the moment of its optimizer

    def phases(self) -> list[MemoryPhase]:
        """The phases in which a rank may need the most memory, in the order of the run."""
        phases = list[MemoryPhase]()
        for span in self.spans:
            before = self.spans[max(0, span.number - 1)]
            if span.number and span.capacity > before.capacity:
                phases.append(self._growing(before, span))
            if span is not self.spans[-1] or len(self.spans) == 1:
                phases += [self._adding_interests(before, span), self._training(span)]
                if span.number and self.resources.trims:
                    phases.append(self._trimming(span))
            if span.number > 1:
                phases.append(self._testing(before, span))
        return phases

    def table_bytes(self, span: Span) -> tuple[int, int]:
        """Bytes of the item table's weights and of their optimizer state."""
        rows = self.shard(span.capacity)
        return rows * self.width * _FLOAT, rows * (self._row - self.width) * _FLOAT

    def store_bytes(self, span: Span) -> int:
        """Bytes of the interests of a rank's users when a span ends, and of each user's offset."""
        return self._slots(span) * self._slot_bytes + (self._users + 1) * _LONG

    def store_on_device(self, tables: Span, interests: Span) -> bool:
        """Whether the store's own rule keeps it in device memory, before early stopping has taken a copy.

        Args:
            tables: the span whose item table is on the device.
            interests: the span at whose end the store has these interests.
        """
        if self._on_cpu:
            return True
        weights, state = self.table_bytes(tables)
        used = weights + state + self.dense_bytes() + self._strategy_tables(tables) * weights
        free = round(self.config.device.memory * (1 - self.config.reserve)) - used
        return self.config.store.fits(self.store_bytes(interests), free)

    def dense_bytes(self) -> int:
        """Dense weights, gradients and Adam's moments; ZeRO shards the moments and a copy of the weights."""
        zero = read_settings(self.config.engine.deepspeed).get("zero_optimization", {}).get("stage", 0)
        sharded = 3 * math.ceil(self.weights / self.config.ranks) if zero else 2 * self.weights
        return _FLOAT * (2 * self.weights + sharded)

    def snapshot_bytes(self, span: Span) -> int:
        """Early stopping's copy of the best epoch in host memory: rows of known items and dense weights."""
        rows = min(self.shard(span.capacity), span.items)
        dense = self.dense_bytes() - _FLOAT * self.weights  # without gradients
        return self._copied(_FLOAT * rows * self.width, _FLOAT * rows * (self._row - self.width), dense)

    def query_copy_bytes(self, span: Span) -> int:
        """Early stopping's copy of the queries, which is where the interest store is."""
        return _FLOAT * self._slots(span) * self._queries

    @property
    def _slot_bytes(self) -> int:
        return _FLOAT * (self.dim + self._queries + self.extractor.state_dim) + _SHORT

    def _slots(self, span: Span) -> int:
        return math.ceil(span.interests / self.config.ranks)

    def _copied(self, *sizes: int) -> int:
        """Bytes of copies on the host; torch rounds pinned memory, for copies of a device, up to powers of two."""
        return sum(sizes) if self._on_cpu else sum(1 << (size - 1).bit_length() for size in sizes if size)

    @property
    def _on_cpu(self) -> bool:
        return self.config.device.device == "cpu"

    def _strategy_tables(self, span: Span) -> int:
        return self.resources.tables if span.number else 0

    def _resident(self, tables: Span, interests: Span) -> tuple[Bytes, Bytes]:
        """What stays on the device and on the host, with the table of one span and the interests of another."""
        weights, state = self.table_bytes(tables)
        device = {"item table": weights, "optimizer state": state, "dense weights": self.dense_bytes()}
        copies = self._strategy_tables(tables)
        if copies:
            device["strategy's tables"] = copies * weights
        indexed = tables.number + 1 if self.resources.reads_history else 1
        host = {"process": self.config.process, "spans' index": indexed * self._users * _INDEXED}
        if self.config.batch.popular_negatives:
            spans = tables.number + 1 if self.resources.retrains else 1
            host["items to draw negatives from"] = spans * tables.items * _LONG
        (device if self.store_on_device(tables, interests) else host)["interest store"] = self.store_bytes(interests)
        if self.config.checkpoint.enabled:
            host["checkpoint's copy"] = self._checkpoint_bytes(tables, interests)
        return device, host

    def _checkpoint_bytes(self, tables: Span, interests: Span) -> int:
        """A copy of all that is trained; the best epoch is written from early stopping's copy."""
        weights, state = self.table_bytes(tables)
        store = self.store_bytes(interests) + self._slots(interests) * _LONG  # each interest with its user
        detector, patience = self.resources.detector, self.config.training.patience > 0
        second_store = patience and (self.extractor.query_dim > 0 or detector.runs_before(1))
        kept = [weights] * self._strategy_tables(tables)
        return self._copied(weights, state, *kept, self.dense_bytes(), *[store] * (1 + second_store))

    def _growing(self, before: Span, span: Span) -> MemoryPhase:
        """The old rows are on the host; they are sent to their new ranks part by part, one tensor at a time."""
        device, host = self._resident(span, before)
        weights, state = self.table_bytes(before)
        host["rows before"] = self._copied(weights, state)
        device["rows that are sent and arrive"] = 2 * min(weights, EXCHANGED)
        if self.config.training.patience and self.config.checkpoint.enabled:
            host["copy for early stopping"] = self.snapshot_bytes(before)  # a checkpoint may still be reading it
        return MemoryPhase(span.number, "growing the table", device, host)

    def _adding_interests(self, before: Span, span: Span) -> MemoryPhase:
        """New interests are drawn; old and new store exist together, as if the old one had no room."""
        device, host = self._resident(span, before)
        drawn = math.ceil((span.interests - (before.interests if span.number else 0)) / self.config.ranks)
        memory = device if self.store_on_device(span, span) else host
        memory["interest store"] = self.store_bytes(before) if span.number else (self._users + 1) * _LONG
        memory["grown store"] = self._slots(span) * (self._slot_bytes + _MOVED)
        memory["interests that are drawn"] = min(drawn, DRAWN) * max(self.dim, self.extractor.query_dim) * _DRAW
        return MemoryPhase(span.number, "new interests", device, host)

    def _training(self, span: Span) -> MemoryPhase:
        """The copy of the best epoch is freed before that of a better one is taken."""
        device, host = self._resident(span, span)
        if self.config.training.patience and epochs_of(self.config, span.number):
            self._add_snapshot(span, device, host)
        device["activations"] = self.activations
        if bucket := gradient_bucket(self.config.engine):
            device["ZeRO's gradient bucket"] = bucket
        device["ranking's tiles"] = self.config.ranking.memory << 20
        return MemoryPhase(span.number, "training", device, host)

    def _trimming(self, span: Span) -> MemoryPhase:
        """The remaining interests move inside the store."""
        device, host = self._resident(span, span)
        memory, kind = (device, self.config.device.device) if self.store_on_device(span, span) else (host, "cpu")
        memory["interests that move"] = self._slots(span) * _MOVED + PART[kind]
        if self.config.training.patience:
            self._add_snapshot(span, device, host)
        return MemoryPhase(span.number, "trimming", device, host)

    def _add_snapshot(self, span: Span, device: Bytes, host: Bytes) -> None:
        host["copy for early stopping"] = self.snapshot_bytes(span)
        if copied := self.query_copy_bytes(span):
            (device if self.store_on_device(span, span) else host)["copy of the queries"] = copied

    def _testing(self, before: Span, span: Span) -> MemoryPhase:
        """A block of users with all that they met in the spans before, as if each item was met once."""
        device, host = self._resident(span, before)
        load, users = self.config.load, min(self.config.batch.eval_size, self.config.users)
        interactions = load.pretraining + before.number * load.active * load.interactions
        met = math.ceil(math.ceil(users / self.config.ranks) * interactions)
        device["items that users have met"] = 2 * met * self.width * _FLOAT  # sent and received
        gathered = math.ceil(users * interactions) * 2 * _LONG  # pairs of a user and an item, on every rank
        queries = math.ceil(users * span.interests / self.config.users) * self.width * _FLOAT
        device["tested users of all ranks"] = 2 * (gathered + queries)  # padded, and joined
        device["ranking's tiles"] = self.config.ranking.memory << 20
        host["earlier interactions"] = met * _MET
        return MemoryPhase(span.number, "testing", device, host)
