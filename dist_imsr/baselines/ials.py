"""Matrix factorisation with implicit feedback (Hu, Koren, Volinsky 2008), by the package ``implicit``."""

import importlib.util
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torchrec import JaggedTensor

from dist_imsr.baselines.dense import SizeLimits, dense_ranks, user_items
from dist_imsr.baselines.known import Known
from dist_imsr.checks import require
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.history import PastItems
from dist_imsr.evaluation.metrics import Ranks


@dataclass
class IALSConfig(SizeLimits):
    """Alternating least squares on all interactions up to the last span.

    Args:
        factors: length of a vector.
        regularization: weight of the squared norms.
        alpha: the confidence that each interaction adds.
        iterations: sweeps over users and items.
        seed: of the first vectors.
    """

    factors: int = 64
    regularization: float = 0.1
    alpha: float = 10.0
    iterations: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("factors", "iterations"):
            require(getattr(self, key) >= 1, f"ials.{key}", getattr(self, key), "at least 1")
        require(self.regularization >= 0, "ials.regularization", self.regularization, "at least 0")
        require(self.alpha > 0, "ials.alpha", self.alpha, "above 0")
        require(self.seed >= 0, "ials.seed", self.seed, "at least 0")

    def check_size(self, name: str, dataset: Dataset) -> None:
        """Refuses larger data, naming size and limit."""
        if importlib.util.find_spec("implicit") is None:
            raise ValueError("baselines: ials needs implicit: pip install 'dist-imsr[baselines]'")
        super().check_size(name, dataset)


class IALS:
    """The baseline.

    Args:
        known: what it may look at.
        config: its section.
    """

    def __init__(self, known: Known, config: IALSConfig) -> None:
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits

        self._known = known
        counts = user_items(known)
        with threadpool_limits(1, "blas"):  # its own threads call BLAS
            model = AlternatingLeastSquares(
                factors=config.factors,
                regularization=config.regularization,
                alpha=config.alpha,
                iterations=config.iterations,
                num_threads=torch.get_num_threads(),
                random_state=config.seed,
            )
            model.fit(sp.csr_matrix(counts), show_progress=False)
        self._users, self._items = model.user_factors, model.item_factors
        self._unmet = np.flatnonzero(counts.sum(axis=0) == 0)
        self.facts: dict[str, float] = {}

    def ranks(self, users: torch.Tensor, targets: JaggedTensor) -> Ranks:
        """As of `dist_imsr.baselines.known.Baseline`; items without interactions tie at the end."""
        return dense_ranks(self._known, users, targets, self._scores)

    def _scores(self, users: np.ndarray, past: PastItems) -> np.ndarray:
        scores: np.ndarray = self._users[users] @ self._items.T
        scores[:, self._unmet] = -np.inf
        return scores
