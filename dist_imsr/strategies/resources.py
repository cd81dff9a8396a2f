"""What a strategy takes beyond the model itself; planning asks for it instead of knowing names."""

from dataclasses import dataclass, field

from dist_imsr.model.detector import DetectorConfig


@dataclass(frozen=True)
class Resources:
    """What a strategy holds and reads in the spans after pre-training.

    Args:
        tables: copies of the item table, without optimizer state, that it keeps beside the model's.
        trains: whether it trains parameters.
        writes_interests: whether it writes users' interests.
        retrains: whether each span starts from new parameters and reads all spans up to it, with the epochs of
            pre-training.
        reads_history: whether ranks keep an index of earlier spans in memory.
        replayed: sequences of earlier spans that are trained on beside each new one, at the most.
        pool: sequences that each span adds to those that may be replayed, for each user.
        detector: NID's options; a disabled one where interests do not grow.
        trims: whether interests are trimmed after a span.
    """

    tables: int = 0
    trains: bool = True
    writes_interests: bool = True
    retrains: bool = False
    reads_history: bool = False
    replayed: int = 0
    pool: int = 0
    detector: DetectorConfig = field(default_factory=lambda: DetectorConfig(enabled=False))
    trims: bool = False
