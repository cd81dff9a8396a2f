"""Seconds of a step and of a span, predicted from counted bytes and operations and from stated rates.

Nothing is measured: each term is a count over a rate times an efficiency, all of them keys, and terms are added, since
the trainer does one after the other. Users have equally many interactions, items are asked for evenly. Reading data,
growing the table, writing checkpoints and exporting are left out.
"""

import math

from dist_imsr.distributed.engine import read_settings
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.links import links_of
from dist_imsr.planning.load import Span, Step, epochs_of, step_of
from dist_imsr.planning.memory import Accounts, activation_bytes, optimizer_width
from dist_imsr.strategies import build_strategy

Seconds = dict[str, float]

_FLOAT = 4
_TOUCHED = 4  # times that an activation is written or read in a step, forward and backward
_BACKWARD = 3  # a step's operations over those of its forward pass


class TimeModel:
    """Predicts times.

    Args:
        config: the command's.
        accounts: of the same plan.
    """

    def __init__(self, config: PlanConfig, accounts: Accounts) -> None:
        self.config, self.accounts, self.device = config, accounts, config.device
        factors = config.hardware
        self._memory = self.device.memory_bandwidth * factors.memory_efficiency
        self._fp32 = self.device.fp32 * factors.compute_efficiency
        autocast = read_settings(config.engine.deepspeed).get("torch_autocast", {}).get("enabled", False)
        self._extractor = (self.device.bf16 if autocast else self.device.fp32) * factors.compute_efficiency
        self._intra, self._inter = (
            rate * factors.link_efficiency for rate in (self.device.intra_node, self.device.inter_node)
        )

    def fullest(self, span: Span) -> float:
        """How many times the mean share of known items the fullest rank owns.

        Args:
            span: at hand.

        Returns:
            1 or more: headroom lies in the last ranks' rows.
        """
        held = min(self.accounts.shard(span.capacity), span.items)
        return max(1.0, held * self.config.ranks / span.items)

    def step(self, span: Span, part: Step | None = None) -> Seconds:
        """A training step on the fullest rank.

        Args:
            span: that is trained.
            part: a rank's part of the step; what the load tells of it by default.

        Returns:
            Terms by name; their sum is the step.
        """
        return self._step(span, part or step_of(self.config, span))

    def span(self, span: Span, following: Span | None) -> Seconds:
        """All that a run does with a span, if no epoch is spared by early stopping.

        Args:
            span: that is trained.
            following: the one on which the model is tested; none for the pre-training span, which no test follows.

        Returns:
            Terms by name; their sum is the span.
        """
        config, strategy = self.config, build_strategy(self.config.strategy)
        epochs = epochs_of(config, span.number)
        learnt = self.accounts.spans[: span.number + 1] if strategy.retrains else [span]
        steps = sum(math.ceil(one.users / config.batch.size) * sum(self.step(one).values()) for one in learnt)
        validated = min(config.training.validation_users, span.users)
        looks = strategy.updates(span.number) + (strategy.interests.detector.enabled and span.number > 0)
        most = config.eval.max_users or config.users
        tested = self.ranking(following, min(most, following.users)) if following else 0.0
        return {
            "training": epochs * steps,
            "validation": epochs * (self.ranking(span, validated) + self._pass(span, validated)),
            "detecting and writing back": looks * self._pass(span, config.users if strategy.retrains else span.users),
            "testing": tested,
        }

    def ranking(self, span: Span, users: int) -> float:
        """Ranks all known items for users with one target each, at the pace of fp32 products.

        It is an upper bound: a target that enough items beat is compared with no more of them.

        Args:
            span: whose items are known.
            users: over all ranks.

        Returns:
            Seconds.
        """
        config = self.config
        interests = span.interests / config.users
        products = users * span.items * interests * config.model.dim * 2 * self.fullest(span)
        blocks = math.ceil(users / config.batch.eval_size)
        shared = users * interests * config.model.dim * _FLOAT  # every rank gets the interests of all
        links = shared / (self._inter if config.nodes > 1 else self._intra) if config.ranks > 1 else 0.0
        return products / (config.ranks * self._fp32) + links + blocks * self.device.overhead

    def _pass(self, span: Span, users: int) -> float:
        """Forward passes over users, in blocks of eval_size."""
        config = self.config
        size = max(1, min(config.batch.eval_size, users))
        part = step_of(config, span)
        share = math.ceil(size / config.ranks) / part.users
        terms = self._step(span, part)
        fixed = terms.pop("overhead") + terms.pop("latency")
        return math.ceil(users / size) * (fixed + share * sum(terms.values()) / _BACKWARD)

    def _step(self, span: Span, step: Step) -> Seconds:
        config, hottest = self.config, self.fullest(span)
        links = links_of(config, step, self.accounts.weights, span.number > 0)
        uneven = {"item ids": 1.0, "embeddings": hottest, "their gradients": 1.0}
        intra, inter = (
            sum(getattr(link, way) * uneven.get(name, 1.0) for name, link in links.items())
            for way in ("intra", "inter")
        )
        exchanged = intra / self._intra, inter / self._inter
        terms = {
            "memory": self._touched(step, hottest) / self._memory,
            "multiplications": self._multiplied(step),
            "links in a machine": exchanged[0],
            "links between machines": exchanged[1],
            "latency": sum(link.messages for link in links.values()) * self.device.latency if config.ranks > 1 else 0.0,
            "overhead": self.device.overhead,
        }
        if not self.accounts.on_device(span, span):
            read = step.users * step.interests * (config.model.dim + self.accounts.queries + self.accounts.states)
            terms["host memory"] = 2 * read * _FLOAT / self.device.to_host
        return terms

    def _touched(self, step: Step, hottest: float) -> float:
        """Bytes of device memory: rows that are read, and moved with their state; what forward and backward hold."""
        dim = self.config.model.dim
        row = 2 * dim + 2 * (dim + optimizer_width(self.config.optimizer, dim)) + dim
        return step.fetched * hottest * row * _FLOAT + _TOUCHED * activation_bytes(self.config, step)

    def _multiplied(self, step: Step) -> float:
        """Seconds of multiplications, forward and backward."""
        model, dim, slots = self.config.model, self.config.model.dim, step.interests
        places, asked = step.users * step.longest_history, step.users * step.longest_targets
        if model.base in ("comirec_dr", "mind"):
            inside = 2 * dim * dim + model.iterations * 4 * slots * dim
        elif model.base == "comirec_sa":
            inside = 2 * dim * model.query_dim + 2 * slots * (model.query_dim + dim)
        else:  # each place passes through all weights
            inside = 2 * self.accounts.weights
        scored = asked * slots * dim * 4 + step.targets * step.negatives * dim * 2
        return _BACKWARD * (places * inside / self._extractor + scored / self._fp32)
