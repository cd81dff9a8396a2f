"""Scores of items for interests (Eq. 5) and the training loss over them (Eq. 6)."""

from typing import Literal, NamedTuple

import torch
from torch.nn.functional import pad

from dist_imsr.model.interests import Interests

Score = Literal["attentive", "max"]
BIAS_WIDTH = 4
"""Columns that an item's bias adds to its row: the bias, and zeros, since the table kernels want a multiple of 4."""


class Scoring(NamedTuple):
    """f_score of Eq. 2, with the scale of erratum E8b and a bias for each item.

    Dot products and their softmax are those of `queries` and whole rows of the item table. A constant that is added to
    all of a user's dot products with an item passes through the softmax of Eq. 5 and through a maximum alike, so that
    the bias is added to the score.

    Args:
        how: as in `score`.
        scale: s, by which dot products of interests and embeddings are multiplied.
        bias: whether rows have `BIAS_WIDTH` more numbers than interests, of which the first is the item's bias.
    """

    how: Score = "attentive"
    scale: float = 1.0
    bias: bool = False

    def row_width(self, dim: int) -> int:
        """The width of a row of the item table, for interests of width d."""
        return dim + BIAS_WIDTH * self.bias

    def plain_agreement(self, agreement: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The dot products of interests and embeddings, without scale and bias.

        Args:
            agreement: ``[B, K, T]``, dot products of queries and rows.
            rows: ``[B, T, row width]``.

        Returns:
            ``[B, K, T]``.
        """
        if self.bias:
            agreement = agreement - rows[..., -BIAS_WIDTH].unsqueeze(1)
        return agreement / self.scale

    def queries(self, interests: Interests) -> Interests:
        """The vectors whose dot products with rows are the agreements of Eq. 5.

        Args:
            interests: ``[B, K, d]``.

        Returns:
            ``[B, K, row width]``, differentiable.
        """
        vectors = interests.vectors * self.scale
        if self.bias:
            vectors = torch.cat([vectors, pad(interests.mask.unsqueeze(-1).to(vectors.dtype), (0, BIAS_WIDTH - 1))], -1)
        return Interests(vectors, interests.mask)


def attend(interests: Interests, agreement: torch.Tensor) -> torch.Tensor:
    """v_u of Eq. 5: for each target, the user's interests weighted by a softmax over their agreement with it.

    Args:
        interests: B users, ``[B, K, d]``.
        agreement: ``[B, K, T]``, h_k . e_a for the T targets of each user.

    Returns:
        ``[B, T, d]``; zero for a user without interests.
    """
    weights = _attention(agreement, interests.mask.unsqueeze(-1))
    return weights.mT @ interests.vectors


def score(interests: Interests, items: torch.Tensor, how: Score = "attentive") -> torch.Tensor:
    """f_score of Eq. 2 for all pairs of users and items (erratum E8).

    Args:
        interests: B users, ``[B, K, d]``.
        items: ``[I, d]`` embeddings shared by all users, or ``[B, I, d]``, different for each user.
        how: ``attentive`` is sum_k softmax_k(e_i . h_k) (e_i . h_k), since v_u of Eq. 5 depends on the candidate;
            ``max`` is max_k e_i . h_k, as in ComiRec.

    Returns:
        ``[B, I]``; zero for a user without interests.
    """
    agreement = interests.vectors @ items.mT  # [B, K, I]
    mask = interests.mask.unsqueeze(-1)
    if how == "max":
        best = agreement.masked_fill(~mask, -torch.inf).amax(1)
        return torch.where(mask.any(1), best, torch.zeros_like(best))
    return (_attention(agreement, mask) * agreement).sum(1)


def _attention(agreement: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """beta_k of Eq. 5 over the second axis; zero for padding."""
    return agreement.masked_fill(~mask, torch.finfo(agreement.dtype).min).softmax(1) * mask


class Candidates(NamedTuple):
    """Scores of targets and of sampled negatives.

    Args:
        positive: ``[A]``, scores of the targets.
        others: ``[A, N]``, scores of the negatives; the smallest finite number if a negative is the target itself.
    """

    positive: torch.Tensor
    others: torch.Tensor

    def last(self, targets: int) -> "Candidates":
        """Views of the last ``targets`` rows."""
        first = len(self.positive) - targets
        return Candidates(self.positive[first:], self.others[first:])

    def total(self) -> torch.Tensor:
        """The logarithm of the denominator of Eq. 6, ``[A]``."""
        return torch.logaddexp(self.positive, self.others.logsumexp(1))


def candidates(
    users: torch.Tensor,
    targets: torch.Tensor,
    negatives: torch.Tensor,
    target_ids: torch.Tensor,
    negative_ids: torch.Tensor,
    target_log_q: torch.Tensor | None = None,
    negative_log_q: torch.Tensor | None = None,
) -> Candidates:
    """Scores targets and negatives, less the logarithm of how likely each is to be drawn as a negative.

    With this correction, their softmax estimates that over all items (Jean et al. 2015, Section 3.1).

    Args:
        users: ``[A, d]``, v_u of Eq. 5 for each target.
        targets: ``[A, d]``, embeddings e_a.
        negatives: ``[N, d]``, embeddings of the sampled items, shared by all targets.
        target_ids: ``[A]`` integers.
        negative_ids: ``[N]`` integers; a negative that is the target itself is masked out (erratum E6).
        target_log_q: ``[A]``; None for uniform draws, as below.
        negative_log_q: ``[N]``.
    """
    positive = (users * targets).sum(-1)
    others = users @ negatives.mT
    if target_log_q is not None and negative_log_q is not None:
        positive, others = positive - target_log_q, others.sub_(negative_log_q)
    smallest = torch.finfo(others.dtype).min
    if others.is_cpu:  # where to compare all pairs takes a tenth of a training step
        others[_equal_pairs(target_ids, negative_ids)] = smallest
    else:  # where the host would have to wait for the number of equal pairs
        others.masked_fill_(target_ids.unsqueeze(1) == negative_ids, smallest)
    return Candidates(positive, others)


def _equal_pairs(targets: torch.Tensor, negatives: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The places of all pairs of a target and a negative with the same id, each ``[number of pairs]``."""
    ordered, order = negatives.sort()
    first = torch.searchsorted(ordered, targets)
    equal = torch.searchsorted(ordered, targets, right=True) - first
    target = torch.repeat_interleave(equal)
    number = torch.arange(len(target)) - (equal.cumsum(0) - equal)[target]  # of the pair among those of its target
    return target, order[first[target] + number]


def sampled_softmax(scores: Candidates) -> torch.Tensor:
    """The loss of Eq. 6 with its sign and its denominator corrected (erratum E6).

    Returns:
        A scalar: the sum over targets of -log softmax of the target among target and negatives.
    """
    return (scores.total() - scores.positive).sum()


def distillation(scores: Candidates, teacher: Candidates) -> torch.Tensor:
    """KL(teacher || student) over target and negatives.

    Args:
        scores: the student's.
        teacher: the teacher's, for the same targets and negatives.

    Returns:
        A scalar: the sum over targets of the cross-entropy with the teacher's soft targets, minus their entropy.
    """
    teacher_total, total = teacher.total(), scores.total()
    log_probability = teacher.positive - teacher_total
    target = log_probability.exp() * (log_probability - scores.positive + total)
    probability = (teacher.others - teacher_total.unsqueeze(1)).exp()  # 0 where the negative is the target
    log_ratio = teacher.others - scores.others + (total - teacher_total).unsqueeze(1)
    return target.sum() + (probability * log_ratio).sum()
