"""The resources that a strategy needs besides the model, for planning."""

from dataclasses import dataclass, field

from dist_imsr.model.detector import DetectorConfig


@dataclass(frozen=True)
class Resources:
    """The resources of a strategy in the spans after pre-training.

    Args:
        tables: number of additional copies of the item table, without optimizer state.
        trains: whether it trains parameters.
        writes_interests: whether it writes users' interests.
        retrains: whether each span trains a new model on all spans up to it, with the epochs of pre-training.
        writes_all_users: whether each span writes the interests of all users so far, and not only of its own.
        reads_history: whether ranks keep an index of earlier spans in memory.
        replayed: maximum number of replayed sequences of earlier spans for each new sequence.
        pool: number of sequences that each span adds to a user's replay pool.
        detector: NID's section; disabled if interests do not grow.
        trims: whether interests are trimmed after a span.
    """

    tables: int = 0
    trains: bool = True
    writes_interests: bool = True
    retrains: bool = False
    writes_all_users: bool = False
    reads_history: bool = False
    replayed: int = 0
    pool: int = 0
    detector: DetectorConfig = field(default_factory=lambda: DetectorConfig(enabled=False))
    trims: bool = False
