"""Device memory of a training step, and what TorchRec's planner must leave alongside the item table."""

import math
from typing import NamedTuple, Protocol

from dist_imsr.data.batch import BatchConfig
from dist_imsr.distributed.engine import EngineConfig, read_settings
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.model.base import Extractor
from dist_imsr.model.extractors import ModelConfig, build_extractor
from dist_imsr.strategies.resources import Resources

_FLOAT = 4
_BUCKET = 500_000_000  # DeepSpeed's default of reduce_bucket_size, in numbers


class StepSections(Protocol):
    """The keys of a run or of a plan on which the memory of a step depends."""

    model: ModelConfig
    batch: BatchConfig
    engine: EngineConfig
    ranking: RankingConfig


class Step(NamedTuple):
    """The mean rank's share of one training step.

    Args:
        users: B.
        history: items of all histories.
        targets: A, over all users.
        longest_history: L, to which histories are padded.
        longest_targets: T, to which targets are padded.
        negatives: shared by the users, looked up by each rank.
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
        """Rows of the item table that the rank looks up."""
        return self.history + self.targets + self.negatives


def activation_bytes(dim: int, extractor: Extractor, step: Step) -> int:
    """Estimates the most bytes that a training step holds besides model and optimizer.

    The coefficients were fitted to this project's own steps on the CPU and rounded up: embeddings that are exchanged,
    padded and mapped, with their gradients; the extractor's own; scores of targets and negatives, four at a time.
    """
    exchanged = 3 * step.fetched * dim
    mapped = 3 * step.users * step.longest_history * dim
    extracted = extractor.activation_numbers(step.users, step.longest_history, step.interests)
    attended = step.users * step.longest_targets * (dim + 4 * step.interests)
    scored = 4 * step.targets * step.negatives
    return _FLOAT * (exchanged + mapped + extracted + attended + scored)


def gradient_bucket(engine: EngineConfig) -> int:
    """Bytes that ZeRO 1 and 2 allocate in each backward pass, however few weights there are; 0 without ZeRO."""
    zero = read_settings(engine.deepspeed).get("zero_optimization", {})
    if not zero.get("stage", 0) or not zero.get("contiguous_gradients", True):
        return 0
    return int(zero.get("reduce_bucket_size", _BUCKET)) * _FLOAT * (2 if zero.get("overlap_comm") else 1)


def bytes_alongside_table(config: StepSections, resources: Resources, ranks: int) -> int:
    """Device memory of a rank that the item table and its copies must not take, whatever the data.

    It is for the largest batch or block of users that ``batch`` allows, ZeRO's bucket and the tiles of ranking. Dense
    weights are small, and interests leave the device if they do not fit.

    Args:
        config: of a run or of a plan.
        resources: of the strategy.
        ranks: the number of ranks.

    Returns:
        Bytes.
    """
    batch, extractor = config.batch, build_extractor(config.model)

    def activations(users: int, targets: int, negatives: int) -> int:
        step = Step(
            users=users,
            history=users * batch.max_history,
            targets=users * targets,
            longest_history=batch.max_history,
            longest_targets=targets,
            negatives=negatives,
            interests=max(config.model.interests, resources.detector.k_max),
        )
        return activation_bytes(config.model.row_width, extractor, step)

    trained = activations(math.ceil(batch.size / ranks) * (1 + resources.replayed), batch.max_targets, batch.negatives)
    extracted = activations(math.ceil(batch.eval_size / ranks), 1, 0)
    return max(trained, extracted) + gradient_bucket(config.engine) + (config.ranking.memory << 20)
