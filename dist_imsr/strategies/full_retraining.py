"""FR: learn everything again from all interactions so far (Section V of the paper); the ceiling, at a growing price."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dist_imsr.data.dataset import Dataset
from dist_imsr.exported import read_parts
from dist_imsr.strategies.interests import InterestPolicy


@dataclass
class FullRetrainingConfig:
    """How many interests users get when they are learnt again.

    Args:
        interests_from: the folder of a run over the same data that exported every span: each user gets as many as that
            run left after the same span; ``model.interests`` for everybody by default.
    """

    interests_from: Path | None = None


class FullRetraining:
    """Draws all parameters and interests anew for each span and trains them on the spans up to it.

    Each span takes the epochs and the learning rates of pre-training.

    Cost per span: these epochs over all interactions so far, so it grows with every span.

    Args:
        config: the strategy's section.
    """

    interests = InterestPolicy.plain()
    retrains = True

    def __init__(self, config: FullRetrainingConfig) -> None:
        self.counts = InterestCounts(config.interests_from) if config.interests_from else None

    def updates(self, span: int) -> bool:
        """True for every span."""
        return True


class InterestCounts:
    """How many interests each user has in the exported spans of a run.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def check(self, dataset: Dataset) -> None:
        """Refuses a run that cannot tell.

        Args:
            dataset: of the run at hand.

        Raises:
            ValueError: naming the file that is missing or was written over other data.
        """
        for span in range(dataset.spans - 1):
            for _ in self._parts(dataset, span):
                pass

    def of(self, dataset: Dataset, span: int, users: np.ndarray) -> np.ndarray:
        """Counts after a span.

        Args:
            dataset: of the run at hand.
            span: the span.
            users: ``[n]`` dense ids, ascending.

        Returns:
            ``[n]`` int64; 0 for users whom that run did not know by then.
        """
        counts = np.zeros(len(users), dtype=np.int64)
        for batch in self._parts(dataset, span):
            owners, held = np.unique(batch["user"].to_numpy(), return_counts=True)
            _, here, there = np.intersect1d(users, owners, assume_unique=True, return_indices=True)
            counts[here] += held[there]
        return counts

    def _parts(self, dataset: Dataset, span: int) -> Iterator[pa.RecordBatch]:
        folder = self.run_dir / "spans" / f"span={span}"
        try:
            yield from read_parts(folder, "interests", dataset, "name a run over these")
        except ValueError as error:
            raise ValueError(f"strategy.full_retraining.interests_from: {error}") from None
