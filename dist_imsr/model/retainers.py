"""EIR, the existing-interests retainer (Section IV-B), and the distillation losses of the paper's ablation.

Every loss is a sum over targets and over each target's existing interests, as Eq. 10 is; its weight is relative to the
mean loss of Eq. 6 per target (erratum E7).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from dist_imsr.checks import require


@dataclass
class RetainerConfig:
    """How existing interests are held.

    Args:
        name: none; kd, the paper's own (Eq. 10); dir, Euclidean; kd1, a softmax over the user's existing interests;
            kd2, a softmax over candidate items for each interest; kd3, kd2 with the weight K^{t-1} / K^t.
        weight: of the loss, relative to the mean loss of Eq. 6 per target.
        tau: the temperature.
    """

    name: Literal["none", "kd", "dir", "kd1", "kd2", "kd3"] = "kd"
    weight: float = 1.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        require(self.weight >= 0, "strategy.imsr.retainer.weight", self.weight, "at least 0")
        require(self.tau > 0, "strategy.imsr.retainer.tau", self.tau, "above 0")


class Drift(NamedTuple):
    """Existing interests of a block of users, then and now, and what they are asked about.

    Args:
        before: ``[B, K, d]``, h^{t-1}, the teacher.
        now: ``[B, K, d]``, h^t, with gradient.
        existing: ``[B, K]`` bool, the interests that the teacher has.
        mask: ``[B, K]`` bool, all interests of span t.
        targets: ``[B, T, d]``, embeddings e_a of each user's targets.
        agreement: ``[B, K, T]``, h_k^t . e_a, with gradient.
        asked: ``[B, T]`` bool, false where ``targets`` is padding.
        negatives: ``[N, d]``, embeddings of the candidates that all targets share.
    """

    before: torch.Tensor
    now: torch.Tensor
    existing: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    agreement: torch.Tensor
    asked: torch.Tensor
    negatives: torch.Tensor


def kd(drift: Drift, tau: float) -> torch.Tensor:
    """Eq. 10: binary cross-entropy of sigma(h_k^t . e_a / tau) against sigma(h_k^{t-1} . e_a / tau).

    The sigmoid in the softmax's place follows the class-incremental detector that the paper cites as [10]. Erratum E7:
    the teacher is the stored vector, without gradient.

    Args:
        drift: of the block.
        tau: the temperature.

    Returns:
        A scalar.
    """
    teacher, student = _agreements(drift, tau)
    each = binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
    return (each * _pairs(drift)).sum()


def direct(drift: Drift, tau: float) -> torch.Tensor:
    """DIR: the squared Euclidean distance of existing interests, counted once for each target like the other losses.

    Args:
        drift: of the block.
        tau: without effect.

    Returns:
        A scalar.
    """
    moved = (drift.now - drift.before).square().sum(-1) * drift.existing  # [B, K]
    return (moved.sum(1) * drift.asked.sum(1)).sum()


def kd1(drift: Drift, tau: float) -> torch.Tensor:
    """KD1: cross-entropy between softmaxes over the user's existing interests, for each target.

    The loss of "Learning without Forgetting" (Li and Hoiem, TPAMI 2018) with interests as the classes.

    Args:
        drift: of the block.
        tau: the temperature.

    Returns:
        A scalar.
    """
    absent, lowest = ~drift.existing.unsqueeze(-1), torch.finfo(drift.now.dtype).min
    teacher, student = (agreement.masked_fill(absent, lowest) for agreement in _agreements(drift, tau))
    return -(teacher.softmax(1) * student.log_softmax(1) * _pairs(drift)).sum()


def kd2(drift: Drift, tau: float) -> torch.Tensor:
    """KD2: cross-entropy between softmaxes over the target and the shared negatives, for each existing interest.

    The loss of "Distilling the Knowledge in a Neural Network" (Hinton et al. 2015) with items as the classes. A
    negative that is the target itself counts beside it, for teacher and student alike.

    Args:
        drift: of the block.
        tau: the temperature.

    Returns:
        A scalar.
    """
    return _candidates(drift, tau).sum()


def kd3(drift: Drift, tau: float) -> torch.Tensor:
    """KD3: kd2, each user's part weighted by K_u^{t-1} / K_u^t, the share of classes that are old.

    The weight is that of "Large Scale Incremental Learning" (Wu et al., CVPR 2019).

    Args:
        drift: of the block.
        tau: the temperature.

    Returns:
        A scalar.
    """
    share = drift.existing.sum(1).to(drift.now.dtype) / drift.mask.sum(1).clamp(min=1)
    return (_candidates(drift, tau) * share.unsqueeze(-1)).sum()


def _pairs(drift: Drift) -> torch.Tensor:
    """Which pairs of an interest and a target count, ``[B, K, T]`` bool."""
    return drift.existing.unsqueeze(-1) & drift.asked.unsqueeze(1)


def _agreements(drift: Drift, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """h_k . e_a / tau, ``[B, K, T]``: the teacher's, without gradient, and the student's."""
    with torch.no_grad():
        teacher = drift.before @ drift.targets.mT / tau
    return teacher, drift.agreement / tau


def _candidates(drift: Drift, tau: float) -> torch.Tensor:
    """Cross-entropies over a target and the negatives, summed over existing interests, ``[B, T]``.

    A target's candidates differ in one item from those of the user's other targets, so what concerns the negatives is
    computed once a user: with q the teacher's probability of the target, the cross-entropy is
    log Z - q s_a - (1 - q) E_negatives[s].
    """
    teacher, student = _agreements(drift, tau)
    others = drift.now @ drift.negatives.mT / tau  # [B, K, N]
    with torch.no_grad():
        wanted = drift.before @ drift.negatives.mT / tau
        total = wanted.logsumexp(-1, keepdim=True)
    expected = (wanted.softmax(-1) * others).sum(-1, keepdim=True)  # [B, K, 1]
    target = teacher - total  # [B, K, T], the log-odds of q
    partition = torch.logaddexp(others.logsumexp(-1, keepdim=True), student)
    each = partition - logsigmoid(target).exp() * student - logsigmoid(-target).exp() * expected
    return (each * _pairs(drift)).sum(1)


RETAINERS: dict[str, Callable[[Drift, float], torch.Tensor]] = {
    "kd": kd,
    "dir": direct,
    "kd1": kd1,
    "kd2": kd2,
    "kd3": kd3,
}
