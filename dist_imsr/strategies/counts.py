"""Numbers of interests per user, from the exported spans of another run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from dist_imsr.data.dataset import Dataset
from dist_imsr.evaluation.exported import read_parts


class InterestCounts:
    """The number of interests of each user in the exported spans of a run.

    Args:
        run_dir: the run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def check(self, dataset: Dataset, spans: range) -> None:
        """Refuses a run whose exported spans are incomplete.

        Args:
            dataset: of the current run.
            spans: those that the current run will train.

        Raises:
            ValueError: naming the file that is missing or was written over other data.
        """
        for span in spans:
            for _ in self._parts(dataset, span):
                pass

    def after(self, dataset: Dataset, span: int, users: np.ndarray) -> np.ndarray:
        """The numbers of interests at the end of a span.

        Args:
            dataset: of the current run.
            span: the span.
            users: ``[n]`` ids, ascending.

        Returns:
            ``[n]`` int64; 0 for users without interests in that run.
        """
        counts = np.zeros(len(users), dtype=np.int64)
        for batch in self._parts(dataset, span):
            owners, owned = np.unique(batch["user"].to_numpy(), return_counts=True)
            _, here, there = np.intersect1d(users, owners, assume_unique=True, return_indices=True)
            counts[here] += owned[there]
        return counts

    def _parts(self, dataset: Dataset, span: int) -> Iterator[pa.RecordBatch]:
        try:
            yield from read_parts(self.run_dir, span, "interests", dataset, "name a run over these")
        except ValueError as error:
            raise ValueError(f"strategy.full_retraining.interests_from: {error}") from None
