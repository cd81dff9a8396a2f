"""PIT, the projection-based trimmer (Section IV-D): removes from new interests what existing ones already span."""

from dataclasses import dataclass
from typing import Any

import torch

from dist_imsr.checks import require
from dist_imsr.model.interests import Interests

_EPSILON = 1e-6


@dataclass
class TrimmerConfig:
    """Projection and trimming of new interests.

    Args:
        project: reduce new interests to their part orthogonal to the existing ones.
        trim: remove short new interests at the end of a span.
        c2: new interests with a smaller norm are removed (Eq. 17).
    """

    project: bool = True
    trim: bool = True
    c2: float = 0.3

    def __post_init__(self) -> None:
        require(self.c2 >= 0, "strategy.imsr.trimmer.c2", self.c2, "at least 0")


def project(interests: Interests, existing: torch.Tensor, new: torch.Tensor | None = None) -> Interests:
    """Projects each new interest onto the complement of the user's existing ones: h - P h (Eq. 15-16).

    Erratum E4: M = [h_1 .. h_K], ``d x K``, holds the *existing* interests, and P = M (M^T M + eps I)^{-1} M^T, eps
    relative to the trace, so that linearly dependent interests, zero interests and K >= d all give finite values,
    and relative to 1, the upper bound of an interest's squared norm, so that interests much shorter than sqrt(eps) span
    nothing. Solved in float64 for any training precision.

    Args:
        interests: H_u^t before the projection, ``[B, K, d]``.
        existing: ``[B, K]`` bool, true for interests from before the span.
        new: the places in ``[B * K]`` of the other interests of users who have existing ones, ascending; finding them
            here waits for a device.

    Returns:
        The interests, differentiable. Existing interests are unchanged, and so are users without existing interests.
    """
    if new is None:
        found = interests.mask & ~existing & existing.any(1, keepdim=True)
        new = found.flatten().nonzero().squeeze(1)
    if not len(new):
        return interests
    user, slot = new // existing.shape[1], new % existing.shape[1]
    in_basis = existing[user]
    basis = interests.vectors[user] * in_basis.unsqueeze(-1)  # [N, K, d], M^T of each new interest
    residual = _Residual.apply(interests.vectors[user, slot], basis, in_basis)
    return Interests(interests.vectors.index_put((user, slot), residual), interests.mask)


class _Residual(torch.autograd.Function):
    """y = v - M (M^T M + eps I)^{-1} M^T v for vectors ``[N, d]`` and rows M^T ``[N, K, d]``.

    The explicit gradient more than halves the time of a backward pass. With A = M^T M + eps I,
    s = A^{-1} M^T v and, for a gradient g of y, p = A^{-1} M^T g, the gradient of v is r = g - M p, and the gradient of
    M^T is -s r^T - p y^T + 2 eps' (p . s) M^T; the last term, with eps' = d eps / d trace, comes from the trace in eps.
    """

    @staticmethod
    def forward(ctx: Any, vectors: torch.Tensor, rows: torch.Tensor, in_basis: torch.Tensor) -> torch.Tensor:
        with torch.autocast(vectors.device.type, enabled=False):
            basis, new = rows.double(), vectors.double().unsqueeze(-1)
            gram = basis @ basis.mT
            trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
            # Rows outside of the basis get a one: the system stays regular, and their solution is zero. The ridge of
            # the others never vanishes; otherwise the gradient of a vanishing interest's direction is unbounded.
            ridge = torch.where(in_basis, _EPSILON * (1 + trace), 1.0)
            # Unchecked: interests that are not finite give a loss that is not finite, which the trainer reports.
            factor = torch.linalg.cholesky_ex(gram + ridge.diag_embed()).L
            share = torch.cholesky_solve(basis @ new, factor)  # [N, K, 1], the new interest in the basis
            residual = new - basis.mT @ share
            ctx.save_for_backward(basis, factor, share, residual)
            return residual.squeeze(-1).to(vectors.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        basis, factor, share, residual = ctx.saved_tensors
        outer = gradient.double().unsqueeze(-1)
        adjoint = torch.cholesky_solve(basis @ outer, factor)
        of_vectors = outer - basis.mT @ adjoint
        of_rows = -share * of_vectors.mT - adjoint * residual.mT
        of_rows += 2 * _EPSILON * (adjoint * share).sum(1, keepdim=True) * basis
        return of_vectors.squeeze(-1).to(gradient.dtype), of_rows.to(gradient.dtype), None
