"""Scores of items for interests (Eq. 5) and the training loss over them (Eq. 6)."""

from typing import Literal, NamedTuple

import torch

from dist_imsr.model.interests import Interests

Score = Literal["attentive", "max"]


def attend(interests: Interests, agreement: torch.Tensor) -> torch.Tensor:
    """v_u of Eq. 5: a user's interests, weighted by their softmaxed agreement with each of the user's targets.

    Args:
        interests: of B users, ``[B, K, d]``.
        agreement: ``[B, K, T]``, h_k . e_a for the targets that user b is asked about.

    Returns:
        ``[B, T, d]``; zero for a user without interests.
    """
    weights = _attention(agreement, interests.mask.unsqueeze(-1))
    return weights.mT @ interests.vectors


def score(interests: Interests, items: torch.Tensor, how: Score = "attentive") -> torch.Tensor:
    """f_score of Eq. 2 for all pairs of users and items (erratum E8).

    Args:
        interests: of B users, ``[B, K, d]``.
        items: ``[I, d]`` embeddings, shared by all users, or ``[B, I, d]``, each user's own.
        how: ``attentive`` is sum_k softmax_k(e_i . h_k) (e_i . h_k), since v_u of Eq. 5 depends on the candidate;
            ``max`` is max_k e_i . h_k, ComiRec's habit.

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
    """Scores of each target and of the sampled items beside it.

    Args:
        positive: ``[A]``, the targets' own.
        others: ``[A, N]``, those of the negatives; the least number there is where one is the target itself.
    """

    positive: torch.Tensor
    others: torch.Tensor

    def last(self, targets: int) -> "Candidates":
        """Those of the last targets alone.

        Args:
            targets: how many.

        Returns:
            Views.
        """
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
) -> Candidates:
    """Scores targets and negatives.

    Args:
        users: ``[A, d]``, v_u of Eq. 5 for each target.
        targets: ``[A, d]``, embeddings e_a.
        negatives: ``[N, d]``, embeddings of the sampled items, shared by all targets.
        target_ids: ``[A]`` integers.
        negative_ids: ``[N]`` integers; a negative that is the target itself is left out (erratum E6).

    Returns:
        The scores.
    """
    positive = (users * targets).sum(-1)
    others = users @ negatives.mT
    others.masked_fill_(target_ids.unsqueeze(1) == negative_ids, torch.finfo(others.dtype).min)
    return Candidates(positive, others)


def sampled_softmax(scores: Candidates) -> torch.Tensor:
    """The loss of Eq. 6, summed over targets, with its sign and its denominator mended (erratum E6).

    Args:
        scores: of targets and negatives.

    Returns:
        A scalar: the sum of -log softmax of the target among target and negatives.
    """
    return (scores.total() - scores.positive).sum()


def distillation(scores: Candidates, teacher: Candidates) -> torch.Tensor:
    """How far a model's choice among the candidates is from its teacher's, summed over targets.

    Args:
        scores: of the model that learns.
        teacher: of the other, for the same candidates.

    Returns:
        A scalar: the sum of KL(teacher || model), the cross-entropy of the teacher's soft targets less their entropy.
    """
    then, now = (one.total() for one in (teacher, scores))
    target = (teacher.positive - then).exp() * (teacher.positive - then - scores.positive + now)
    sampled = (teacher.others - then.unsqueeze(1)).exp()  # 0 where the negative is the target
    gap = teacher.others - scores.others + (now - then).unsqueeze(1)
    return target.sum() + (sampled * gap).sum()
