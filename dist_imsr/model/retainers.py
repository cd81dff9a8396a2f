"""EIR, the existing-interests retainer (Section IV-B), and the distillation losses of the paper's ablation.

Every loss takes a `Drift` and the temperature tau and returns a scalar: a sum over targets and each target's existing
interests, as in Eq. 10. Its weight is relative to the mean loss of Eq. 6 per target (erratum E7).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from dist_imsr.checks import require


@dataclass
class RetainerConfig:
    """The distillation loss that retains existing interests.

    Args:
        name: none; kd, the paper's (Eq. 10); dir, Euclidean; kd1, a softmax over the user's existing interests; kd2, a
            softmax over candidate items for each interest; kd3, kd2 with the weight K^{t-1} / K^t.
        weight: weight of the loss, relative to the mean loss of Eq. 6 per target.
        tau: the temperature.
    """

    name: Literal["none", "kd", "dir", "kd1", "kd2", "kd3"] = "kd"
    weight: float = 1.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        require(self.weight >= 0, "strategy.imsr.retainer.weight", self.weight, "at least 0")
        require(self.tau > 0, "strategy.imsr.retainer.tau", self.tau, "above 0")


class Drift(NamedTuple):
    """Existing interests of a block of users before and after an update, with the users' targets.

    Args:
        before: ``[B, K, d]``, h^{t-1}, the teacher.
        now: ``[B, K, d]``, h^t, with gradient.
        existing: ``[B, K]`` bool, true for the interests that the teacher has.
        mask: ``[B, K]`` bool, all interests of span t.
        targets: ``[B, T, d]``, embeddings e_a of each user's targets.
        agreement: ``[B, K, T]``, h_k^t . e_a, with gradient.
        target_mask: ``[B, T]`` bool, false where ``targets`` is padding.
        negatives: ``[N, d]``, embeddings of the sampled items, shared by all targets.
    """

    before: torch.Tensor
    now: torch.Tensor
    existing: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    agreement: torch.Tensor
    target_mask: torch.Tensor
    negatives: torch.Tensor


def kd(drift: Drift, tau: float) -> torch.Tensor:
    """Eq. 10: binary cross-entropy of sigma(h_k^t . e_a / tau) against sigma(h_k^{t-1} . e_a / tau).

    The sigmoid instead of a softmax follows the class-incremental detector that the paper cites as [10]. Erratum E7:
    the teacher is the stored vector, without gradient.
    """
    teacher, student = _agreements(drift, tau)
    each = binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
    return (each * _pairs(drift)).sum()


def direct(drift: Drift, tau: float) -> torch.Tensor:
    """DIR: the squared Euclidean distance between existing interests, once per target like the other losses.

    ``tau`` has no effect.
    """
    distance = (drift.now - drift.before).square().sum(-1) * drift.existing  # [B, K]
    return (distance.sum(1) * drift.target_mask.sum(1)).sum()


def kd1(drift: Drift, tau: float) -> torch.Tensor:
    """KD1: cross-entropy between softmaxes over the user's existing interests, for each target.

    The loss of "Learning without Forgetting" (Li and Hoiem, TPAMI 2018) with interests as the classes.
    """
    absent, lowest = ~drift.existing.unsqueeze(-1), torch.finfo(drift.now.dtype).min
    teacher, student = (agreement.masked_fill(absent, lowest) for agreement in _agreements(drift, tau))
    return -(teacher.softmax(1) * student.log_softmax(1) * _pairs(drift)).sum()


def kd2(drift: Drift, tau: float) -> torch.Tensor:
    """KD2: cross-entropy between softmaxes over the target and the shared negatives, for each existing interest.

    The loss of "Distilling the Knowledge in a Neural Network" (Hinton et al. 2015) with items as the classes, as likely
    as negatives are drawn: with ``batch.popular_negatives``, popular ones count more. A negative equal to the target
    counts in addition to the target, for teacher and student.
    """
    return _candidates(drift, tau).sum()


def kd3(drift: Drift, tau: float) -> torch.Tensor:
    """KD3: kd2 with each user's part weighted by K_u^{t-1} / K_u^t, the share of old classes.

    The weight is that of "Large Scale Incremental Learning" (Wu et al., CVPR 2019).
    """
    share = drift.existing.sum(1).to(drift.now.dtype) / drift.mask.sum(1).clamp(min=1)
    return (_candidates(drift, tau) * share.unsqueeze(-1)).sum()


def _pairs(drift: Drift) -> torch.Tensor:
    """Pairs of an existing interest and a target, ``[B, K, T]`` bool."""
    return drift.existing.unsqueeze(-1) & drift.target_mask.unsqueeze(1)


def _agreements(drift: Drift, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """h_k . e_a / tau of the teacher, without gradient, and of the student, ``[B, K, T]`` each."""
    with torch.no_grad():
        teacher = drift.before @ drift.targets.mT / tau
    return teacher, drift.agreement / tau


def _candidates(drift: Drift, tau: float) -> torch.Tensor:
    """Cross-entropies over a target and the negatives, summed over existing interests, ``[B, T]``.

    The negatives are shared by a user's targets, so their terms are computed once per user: with q the teacher's
    probability of the target, the cross-entropy is log Z - q s_a - (1 - q) E_negatives[s].
    """
    teacher, student = _agreements(drift, tau)
    student_negatives = drift.now @ drift.negatives.mT / tau  # [B, K, N]
    with torch.no_grad():
        teacher_negatives = drift.before @ drift.negatives.mT / tau
        total = teacher_negatives.logsumexp(-1, keepdim=True)
    expected = (teacher_negatives.softmax(-1) * student_negatives).sum(-1, keepdim=True)  # [B, K, 1]
    log_odds = teacher - total  # [B, K, T], of q
    partition = torch.logaddexp(student_negatives.logsumexp(-1, keepdim=True), student)
    each = partition - logsigmoid(log_odds).exp() * student - logsigmoid(-log_odds).exp() * expected
    return (each * _pairs(drift)).sum(1)


RETAINERS: dict[str, Callable[[Drift, float], torch.Tensor]] = {
    "kd": kd,
    "dir": direct,
    "kd1": kd1,
    "kd2": kd2,
    "kd3": kd3,
}
