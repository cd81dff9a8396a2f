"""PIT, the projection-based trimmer (Section IV-D): new interests keep what existing ones cannot say, or go."""

from dataclasses import dataclass

import torch

from dist_imsr.config import require
from dist_imsr.model.interests import Interests

_EPSILON = 1e-6


@dataclass
class TrimmerConfig:
    """What becomes of new interests.

    Args:
        project: whether new interests keep only their part orthogonal to the existing ones.
        trim: whether short new interests are removed when the span ends.
        c2: the norm below which they are (Eq. 17).
    """

    project: bool = True
    trim: bool = True
    c2: float = 0.3

    def __post_init__(self) -> None:
        require(self.c2 >= 0, "strategy.imsr.trimmer.c2", self.c2, "at least 0")


def project(interests: Interests, existing: torch.Tensor) -> Interests:
    """Takes from each new interest what the user's existing ones span: h - P h (Eq. 15-16).

    Erratum E4: M = [h_1 .. h_K], ``d x K``, holds the *existing* interests, and P = M (M^T M + eps I)^{-1} M^T, eps
    relative to the trace, so that dependent and zero interests and K >= d all give finite values, and relative to 1,
    the square that bounds an interest's norm: what is far shorter than sqrt(eps) spans nothing. Solved in float64,
    whatever the training's precision.

    Args:
        interests: H_u^t before the projection, ``[B, K, d]``.
        existing: ``[B, K]`` bool, the interests that are older than the span.

    Returns:
        The interests; existing ones, and those of users without any, as they were. Differentiable.
    """
    growing = interests.mask & ~existing & existing.any(1, keepdim=True)
    user, slot = growing.nonzero().T
    if not len(user):
        return interests
    with torch.autocast(interests.vectors.device.type, enabled=False):
        new = interests.vectors[user, slot].double().unsqueeze(-1)  # [N, d, 1], a system for each new interest
        basis = interests.vectors[user].double() * existing[user].unsqueeze(-1)  # [N, K, d], M^T
        gram = basis @ basis.mT
        trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        # Rows that are no basis get a one, so that the system stays regular and their solution zero. The others' ridge
        # never vanishes: the gradient of the direction of an interest that does would know no bound.
        ridge = torch.where(existing[user], _EPSILON * (1 + trace), 1.0)
        # Unchecked: interests that are not finite give a loss that is not, of which the trainer tells where it was.
        factor = torch.linalg.cholesky_ex(gram + torch.diag_embed(ridge)).L
        share = torch.cholesky_solve(basis @ new, factor)  # [N, K, 1], the new interest in the basis
        kept = (new - basis.mT @ share).squeeze(-1).to(interests.vectors.dtype)
    return Interests(interests.vectors.index_put((user, slot), kept), interests.mask)
