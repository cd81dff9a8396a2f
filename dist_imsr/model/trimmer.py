"""PIT, the projection-based trimmer (Section IV-D): new interests keep what existing ones cannot say, or go."""

from dataclasses import dataclass
from typing import Any

import torch

from dist_imsr.checks import require
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
    held = existing[user]
    basis = interests.vectors[user] * held.unsqueeze(-1)  # [N, K, d], M^T of each new interest
    kept = _Residual.apply(interests.vectors[user, slot], basis, held)
    return Interests(interests.vectors.index_put((user, slot), kept), interests.mask)


class _Residual(torch.autograd.Function):
    """y = v - M (M^T M + eps I)^{-1} M^T v for vectors ``[N, d]`` and rows M^T ``[N, K, d]``.

    The gradient is written out, which more than halves the time of a backward pass. With A = M^T M + eps I,
    s = A^{-1} M^T v and, for a gradient g of y, p = A^{-1} M^T g, that of v is r = g - M p, and that of M^T is
    -s r^T - p y^T + 2 eps' (p . s) M^T; the last term, with eps' = d eps / d trace, is that of the trace in eps.
    """

    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor, rows: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            basis, new = rows.double(), vectors.double().unsqueeze(-1)
            gram = basis @ basis.mT
            trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
            # Rows that are no basis get a one, so that the system stays regular and their solution zero. The others'
            # ridge never vanishes: the gradient of the direction of an interest that does would know no bound.
            ridge = torch.where(held, _EPSILON * (1 + trace), 1.0)
            # Unchecked: interests that are not finite give a loss that is not, of which the trainer tells where it was.
            factor = torch.linalg.cholesky_ex(gram + ridge.diag_embed()).L
            share = torch.cholesky_solve(basis @ new, factor)  # [N, K, 1], the new interest in the basis
            kept = new - basis.mT @ share
            ctx.save_for_backward(basis, factor, share, kept)
            return kept.squeeze(-1).to(vectors.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        basis, factor, share, kept = ctx.saved_tensors
        given = gradient.double().unsqueeze(-1)
        adjoint = torch.cholesky_solve(basis @ given, factor)
        rest = given - basis.mT @ adjoint
        rows = -share * rest.mT - adjoint * kept.mT
        rows += 2 * _EPSILON * (adjoint * share).sum(1, keepdim=True) * basis
        return rest.squeeze(-1).to(gradient.dtype), rows.to(gradient.dtype), None
