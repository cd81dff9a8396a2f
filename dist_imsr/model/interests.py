"""The padded views of users' interests that the equations work on."""

from typing import NamedTuple

import torch


class Interests(NamedTuple):
    """A block of users' interests, padded to the largest number of them in the block.

    Args:
        vectors: ``[B, K, d]`` floating, H_u of each user; rows of padding are zero.
        mask: ``[B, K]`` bool, true where there is an interest.
        states: ``[B, K, m]`` floating, what a life-long extractor keeps beside each interest, once the history is
            taken in; None for the others.
    """

    vectors: torch.Tensor
    mask: torch.Tensor
    states: torch.Tensor | None = None

    def replace(self, vectors: torch.Tensor, states: torch.Tensor | None = None) -> "Interests":
        """The same slots with other vectors and states; rows of padding are set to zero.

        Args:
            vectors: ``[B, K, d]`` floating.
            states: ``[B, K, m]`` floating; None for none.

        Returns:
            The interests with the same mask.
        """
        real = self.mask.unsqueeze(-1)
        return Interests(vectors * real, self.mask, None if states is None else states * real)


class Start(NamedTuple):
    """What an extractor begins with in span t, slot by slot.

    Args:
        interests: the stored H_u^{t-1}, ``[B, K, d]``; N(0, I) where an interest is new (erratum E2).
        carried: ``[B, K]``, how many items the stored vector counts as in H_u^t (erratum E10): rho for existing
            interests, zero for new ones. None carries nothing.
        logits: ``[B, K, L]``, random routing logits, for the extractors that ask for them.
        queries: ``[B, K, d_a]``, the users' own W_u of Eq. 8, for the extractors that ask for them.
        states: ``[B, K, m]``, what was kept of the users' lives so far, for the extractors that ask for it; zero for a
            user whom no interaction has reached.
    """

    interests: Interests
    carried: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    queries: torch.Tensor | None = None
    states: torch.Tensor | None = None

    def last(self, users: int, length: int) -> "Start":
        """Those of the last users alone.

        Args:
            users: how many.
            length: L of their longest history.

        Returns:
            Views.
        """
        first = len(self.interests.mask) - users

        def part(one: torch.Tensor | None) -> torch.Tensor | None:
            return None if one is None else one[first:]

        vectors, mask, states = self.interests
        interests = Interests(vectors[first:], mask[first:], part(states))
        logits = None if self.logits is None else self.logits[first:, :, :length]
        return Start(interests, part(self.carried), logits, part(self.queries), part(self.states))
