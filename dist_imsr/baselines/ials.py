"""Matrix factorisation with implicit feedback (Hu, Koren, Volinsky 2008), by the package ``implicit``."""

import importlib.util
import math
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
import torch
from torchrec import JaggedTensor

from dist_imsr.baselines.dense import SizeLimits, dense_ranks, user_items
from dist_imsr.baselines.known import Known
from dist_imsr.checks import require
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.history import PastItems
from dist_imsr.evaluation.metrics import Ranks, discount


@dataclass
class IALSConfig(SizeLimits):
    """Alternating least squares on all interactions up to the last span.

    Args:
        factors: length of a vector.
        regularization: weight of the squared norms.
        alphas: candidates of the confidence that each interaction adds. Before each test the best one is chosen by NDCG
            on the users' second last interactions of the last span, from factors without these and the last ones.
        iterations: sweeps over users and items.
        seed: of the first vectors.
    """

    factors: int = 64
    regularization: float = 0.1
    alphas: list[float] = field(default_factory=lambda: [1.0, 3.0, 10.0, 30.0])
    iterations: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("factors", "iterations"):
            require(getattr(self, key) >= 1, f"ials.{key}", getattr(self, key), "at least 1")
        require(self.regularization >= 0, "ials.regularization", self.regularization, "at least 0")
        possible = bool(self.alphas) and all(0 < alpha < math.inf for alpha in self.alphas)
        require(possible, "ials.alphas", self.alphas, "finite numbers above 0")
        require(len(set(self.alphas)) == len(self.alphas), "ials.alphas", self.alphas, "different numbers")
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
        self._known, self._config = known, config
        alpha = config.alphas[0] if len(config.alphas) == 1 else self._choose_alpha()
        self._fit(user_items(known), alpha)
        self.facts = {"alpha": alpha}

    def ranks(self, users: torch.Tensor, targets: JaggedTensor) -> Ranks:
        """As of `dist_imsr.baselines.known.Baseline`; items without interactions tie at the end."""
        return dense_ranks(self._known, users, targets, self._scores)

    def _choose_alpha(self) -> float:
        counts, gains = user_items(self._known, training=True), list[float]()
        for alpha in self._config.alphas:
            self._fit(counts, alpha)
            gain = 0.0
            for batch in self._known.validation():
                ranks = dense_ranks(self._known, batch.users, batch.targets, self._scores, training=True)
                gain += discount(ranks.all_items, self._known.top).sum().item()
            gains.append(gain)
        return self._config.alphas[int(np.argmax(gains))]

    def _fit(self, counts: sp.csr_array, alpha: float) -> None:
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits

        config = self._config
        with threadpool_limits(1, "blas"):  # its own threads call BLAS
            model = AlternatingLeastSquares(
                factors=config.factors,
                regularization=config.regularization,
                alpha=alpha,
                iterations=config.iterations,
                num_threads=torch.get_num_threads(),
                random_state=config.seed,
            )
            model.fit(sp.csr_matrix(counts), show_progress=False)
        self._users, self._items = model.user_factors, model.item_factors
        self._unmet = np.flatnonzero(counts.sum(axis=0) == 0)

    def _scores(self, users: np.ndarray, past: PastItems) -> np.ndarray:
        scores: np.ndarray = self._users[users] @ self._items.T
        scores[:, self._unmet] = -np.inf
        return scores
