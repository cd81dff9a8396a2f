"""Padded blocks of users' interests."""

from typing import NamedTuple

import torch


class Interests(NamedTuple):
    """A block of users' interests, padded to the largest number of them in the block.

    Args:
        vectors: ``[B, K, d]`` floating, H_u of each user; rows of padding are zero.
        mask: ``[B, K]`` bool, true where there is an interest.
        states: ``[B, K, m]`` floating, the recurrent states of a life-long extractor after the history; None for other
            extractors.
    """

    vectors: torch.Tensor
    mask: torch.Tensor
    states: torch.Tensor | None = None

    def replace(self, vectors: torch.Tensor, states: torch.Tensor | None = None) -> "Interests":
        """The same mask with other vectors ``[B, K, d]`` and states ``[B, K, m]``; rows of padding are set to zero."""
        real = self.mask.unsqueeze(-1)
        return Interests(vectors * real, self.mask, None if states is None else states * real)


class Start(NamedTuple):
    """The inputs of an extractor in span t besides the items.

    Args:
        interests: the stored H_u^{t-1}, ``[B, K, d]``; N(0, I) for a new interest (erratum E2).
        carried: ``[B, K]``, how many items the stored vector counts as in H_u^t (erratum E10): rho for existing
            interests, zero for new ones. None means zero for all.
        logits: ``[B, K, L]``, random routing logits, if the extractor has a ``logit_scale``.
        queries: ``[B, K, d_a]``, the per-user W_u of Eq. 8, if the extractor has a ``query_dim``.
        states: ``[B, K, m]``, the states after the users' earlier histories, if the extractor has a ``state_dim``; zero
            for a user without interactions.
    """

    interests: Interests
    carried: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    queries: torch.Tensor | None = None
    states: torch.Tensor | None = None

    def last(self, users: int, length: int) -> "Start":
        """Views of the last ``users`` rows; ``length`` is L of their longest history."""
        first = len(self.interests.mask) - users

        def part(one: torch.Tensor | None) -> torch.Tensor | None:
            return None if one is None else one[first:]

        vectors, mask, states = self.interests
        interests = Interests(vectors[first:], mask[first:], part(states))
        logits = None if self.logits is None else self.logits[first:, :, :length]
        return Start(interests, part(self.carried), logits, part(self.queries), part(self.states))
