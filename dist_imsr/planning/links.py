"""Bytes that a rank hands to others in one step of training, on the links inside a machine and between machines."""

from typing import NamedTuple

from dist_imsr.distributed.table import BAG
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.load import Step
from dist_imsr.planning.memory import TABLES

_FLOAT, _LONG = 4, 8
_SIZES = 3  # numbers for each rank before ids travel: TorchRec's sizes of lengths, values and batches
_TOLD = 3  # numbers in float64 that ranks tell each other after a step


class Link(NamedTuple):
    """What one exchange hands over; the mean over ranks.

    Args:
        intra: bytes to ranks of the same machine.
        inter: bytes to ranks of other machines.
        messages: one after the other, each of which waits for the latency of a link.
    """

    intra: float
    inter: float
    messages: float


def links_of(config: PlanConfig, step: Step, weights: int, later: bool = True) -> dict[str, Link]:
    """All exchanges of a step.

    Rows of the table are asked for by their ids, evenly over the ranks: each rank fetches its own histories, targets
    and negatives. Embeddings come back, and gradients go the way of the ids. Users cost nothing.

    Args:
        config: the command's.
        step: a rank's part.
        weights: of the dense module.
        later: whether it is a step behind pre-training, where some strategies look up a second table.

    Returns:
        By name.
    """
    ranks, dim = config.ranks, config.model.dim
    lookups = 2 if later and config.strategy.name in TABLES else 1
    rows, lengths = step.fetched * dim * _FLOAT, -(-step.fetched // BAG)
    return {
        "sizes and lengths": _all_to_all(config, ranks * (_SIZES + lengths) * _LONG, 2, lookups),
        "item ids": _all_to_all(config, step.fetched * _LONG, 1, lookups),
        "embeddings": _all_to_all(config, rows, 1, lookups),
        "their gradients": _all_to_all(config, rows, 1, 1),
        # Rings: every rank passes on the others' parts, twice where they are summed.
        "dense gradients": _ring(config, 2 * weights * _FLOAT * (ranks - 1) / ranks),
        "losses": _ring(config, _TOLD * _LONG * (ranks - 1)),
    }


def _all_to_all(config: PlanConfig, held: int, exchanges: int, times: int) -> Link:
    """Every rank holds as many bytes for each rank, itself among them."""
    ranks, local = config.ranks, config.gpus_per_node
    each = times * held / ranks
    return Link(each * (local - 1), each * (ranks - local), times * exchanges * (ranks - 1))


def _ring(config: PlanConfig, passed: float) -> Link:
    """Every rank passes bytes to the next; of a machine's ranks, one sends to another machine."""
    ranks, local = config.ranks, config.gpus_per_node
    away = 1 / local if config.nodes > 1 else 0.0
    return Link(passed * (1 - away), passed * away, 2.0 * (ranks - 1).bit_length())
