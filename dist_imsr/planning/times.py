"""Bytes on the links in a training step, and the seconds of a step and of a span.

Times are predictions: each term is a count over a stated rate times an efficiency, all of them keys. Terms are added,
since the trainer does one after the other. Users have equally many interactions and items are looked up evenly. Reading
data, growing the table, writing checkpoints and exporting are not included.
"""

import math
from typing import NamedTuple

from dist_imsr.distributed.engine import read_settings
from dist_imsr.distributed.table import BAG
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.load import Span, epochs_of, step_of
from dist_imsr.planning.memory import MemoryModel, optimizer_width
from dist_imsr.strategies.span_trainer import READ_EVERY
from dist_imsr.strategies.step_memory import Step, activation_bytes

Seconds = dict[str, float]  # by term

_FLOAT, _LONG = 4, 8
_SIZES = 3  # numbers per rank that TorchRec exchanges before ids: sizes of lengths, values and batches
_REPORTED = 2  # float64 losses of a step
_TOUCHED = 4  # times that an activation is written or read in a step, forward and backward
_BACKWARD = 3  # operations of a step over those of its forward pass


class Link(NamedTuple):
    """The traffic of one collective, as the mean over ranks.

    Args:
        intra: bytes sent to ranks of the same machine.
        inter: bytes sent to ranks of other machines.
        messages: sent one after the other, each with the latency of a link.
    """

    intra: float
    inter: float
    messages: float


def links_of(config: PlanConfig, step: Step, weights: int, tables: int = 1) -> dict[str, Link]:
    """The collectives of a training step.

    Each rank looks up its own histories, targets and negatives, whose ids are spread evenly over the ranks. Embeddings
    come back, and gradients go where the ids went. Users cost nothing.

    Args:
        config: of the plan.
        step: a rank's share.
        weights: of the dense module.
        tables: that are looked up: the model's and those of the strategy, one at a time.

    Returns:
        Traffic by the collective's name.
    """
    ranks = config.ranks
    rows, lengths = step.fetched * config.model.row_width * _FLOAT, -(-step.fetched // BAG)
    return {
        "sizes and lengths": _all_to_all(config, tables * ranks * (_SIZES + lengths) * _LONG, 2 * tables),
        "item ids": _all_to_all(config, tables * step.fetched * _LONG, tables),
        "embeddings": _all_to_all(config, tables * rows, tables),
        "their gradients": _all_to_all(config, rows, 1),
        # A ring passes on the other ranks' parts, twice where they are summed.
        "dense gradients": _ring(config, 2 * weights * _FLOAT * (ranks - 1) / ranks),
        "losses": _ring(config, _REPORTED * _LONG * (ranks - 1), every=READ_EVERY),
    }


def _all_to_all(config: PlanConfig, size: int, exchanges: int) -> Link:
    """Bytes that each rank splits evenly over all ranks, itself included."""
    ranks, local = config.ranks, config.gpus_per_node
    each = size / ranks
    return Link(each * (local - 1), each * (ranks - local), exchanges * (ranks - 1))


def _ring(config: PlanConfig, size: float, every: int = 1) -> Link:
    """Bytes that each rank sends to the next; one rank of each machine sends to another machine, every few steps."""
    away = 1 / config.gpus_per_node if config.nodes > 1 else 0.0
    return Link(size * (1 - away), size * away, 2.0 * (config.ranks - 1).bit_length() / every)


class TimeModel:
    """Predicts the seconds of steps and spans on the rank that owns most items.

    Args:
        memory: of the plan.
    """

    def __init__(self, memory: MemoryModel) -> None:
        self.memory, self.config, self.device = memory, memory.config, memory.config.device
        config, device, hardware = self.config, self.device, self.config.hardware
        autocast = read_settings(config.engine.deepspeed).get("torch_autocast", {}).get("enabled", False)
        self._bandwidth = device.memory_bandwidth * hardware.memory_efficiency
        self._fp32 = device.fp32 * hardware.compute_efficiency
        self._extractor = (device.bf16 if autocast else device.fp32) * hardware.compute_efficiency
        self._intra = device.intra_node * hardware.link_efficiency
        self._inter = device.inter_node * hardware.link_efficiency

    def links(self, span: Span, step: Step) -> dict[str, Link]:
        """The collectives of one step of a span."""
        tables = self.memory.resources.tables
        return links_of(self.config, step, self.memory.weights, 2 if span.number and tables else 1)

    def step_seconds(self, span: Span, step: Step) -> Seconds:
        """A training step of a span; terms by name, whose sum is the step."""
        config, imbalance = self.config, self._imbalance(span)
        links = self.links(span, step)
        uneven = {"item ids": 1.0, "embeddings": imbalance, "their gradients": 1.0}
        intra = sum(link.intra * uneven.get(name, 1.0) for name, link in links.items())
        inter = sum(link.inter * uneven.get(name, 1.0) for name, link in links.items())
        terms = {
            "memory": self._bytes_touched(step, imbalance) / self._bandwidth,
            "multiplications": self._multiplication_seconds(step),
            "links in a machine": intra / self._intra,
            "links between machines": inter / self._inter,
            "latency": sum(link.messages for link in links.values()) * self.device.latency if config.ranks > 1 else 0.0,
            "overhead": self.device.overhead,
        }
        if not self.memory.store_on_device(span, span):
            extractor = self.memory.extractor
            numbers = step.users * step.interests * (config.model.dim + extractor.query_dim + extractor.state_dim)
            terms["host memory"] = 2 * numbers * _FLOAT / self.device.to_host
        return terms

    def span_seconds(self, span: Span, following: Span | None) -> Seconds:
        """All that a run does with a span if early stopping skips no epoch.

        Args:
            span: that is trained.
            following: that the model is tested on; None for a span that is not tested.

        Returns:
            Terms by name, whose sum is the span.
        """
        config, resources, later = self.config, self.memory.resources, span.number > 0
        epochs = epochs_of(config, span.number)
        trained = self.memory.spans[: span.number + 1] if resources.retrains else [span]
        steps = sum(
            math.ceil(one.users / config.batch.size) * sum(self.step_seconds(one, step_of(config, one)).values())
            for one in trained
        )
        validated = min(config.training.validation_users, span.users)
        detections = sum(map(resources.detector.runs_before, range(epochs))) if later else 0
        passes = (resources.writes_interests or not later) + detections
        tested = min(config.eval.max_users or config.users, following.users) if following else 0
        return {
            "training": epochs * steps,
            "validation": epochs * (self._ranking_seconds(span, validated) + self._forward_seconds(span, validated)),
            "detecting and writing back": passes
            * self._forward_seconds(span, config.users if resources.writes_all_users else span.users),
            "testing": self._ranking_seconds(following, tested) if following else 0.0,
        }

    def _imbalance(self, span: Span) -> float:
        """Known items of the fullest rank over the mean; above 1, since headroom lies in the last ranks' rows."""
        rows = min(self.memory.shard(span.capacity), span.items)
        return max(1.0, rows * self.config.ranks / span.items)

    def _ranking_seconds(self, span: Span, users: int) -> float:
        """Ranks all known items for so many users of all ranks, with one target each, at the rate of fp32 products.

        An upper bound: a target that enough items beat is compared with no more of them.
        """
        config = self.config
        interests = span.interests / config.users
        products = users * span.items * interests * config.model.row_width * 2 * self._imbalance(span)
        blocks = math.ceil(users / config.batch.eval_size)
        shared = users * interests * config.model.row_width * _FLOAT  # every rank receives the interests of all
        links = shared / (self._inter if config.nodes > 1 else self._intra) if config.ranks > 1 else 0.0
        return products / (config.ranks * self._fp32) + links + blocks * self.device.overhead

    def _forward_seconds(self, span: Span, users: int) -> float:
        """Forward passes over users of all ranks, in blocks of eval_size."""
        config, step = self.config, step_of(self.config, span)
        size = max(1, min(config.batch.eval_size, users))
        share = math.ceil(size / config.ranks) / step.users
        terms = self.step_seconds(span, step)
        fixed = terms.pop("overhead") + terms.pop("latency")
        return math.ceil(users / size) * (fixed + share * sum(terms.values()) / _BACKWARD)

    def _bytes_touched(self, step: Step, imbalance: float) -> float:
        """Device memory traffic: rows that are read and updated with their state, and activations."""
        dim = self.config.model.row_width
        row = 2 * dim + 2 * (dim + optimizer_width(self.config.catalogue.optimizer, dim)) + dim
        activations = activation_bytes(dim, self.memory.extractor, step)
        return step.fetched * imbalance * row * _FLOAT + _TOUCHED * activations

    def _multiplication_seconds(self, step: Step) -> float:
        dim, slots = self.config.model.row_width, step.interests
        extracted = self.memory.extractor.forward_flops(step.users, step.longest_history, slots)
        scored = step.users * step.longest_targets * slots * dim * 4 + step.targets * step.negatives * dim * 2
        return _BACKWARD * (extracted / self._extractor + scored / self._fp32)
