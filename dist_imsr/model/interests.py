"""The padded views of users' interests that the equations work on."""

from typing import NamedTuple

import torch


class Interests(NamedTuple):
    """A block of users' interests, padded to the largest number of them in the block.

    Args:
        vectors: ``[B, K, d]`` floating, H_u of each user; rows of padding are zero.
        mask: ``[B, K]`` bool, true where there is an interest.
    """

    vectors: torch.Tensor
    mask: torch.Tensor

    def replace(self, vectors: torch.Tensor) -> "Interests":
        """The same slots with other vectors; rows of padding are set to zero.

        Args:
            vectors: ``[B, K, d]`` floating.

        Returns:
            The interests with the same mask.
        """
        return Interests(vectors * self.mask.unsqueeze(-1), self.mask)


class Start(NamedTuple):
    """What an extractor begins with in span t, slot by slot.

    Args:
        interests: the stored H_u^{t-1}, ``[B, K, d]``; N(0, I) where an interest is new (erratum E2).
        carried: ``[B, K]``, how many items the stored vector counts as in H_u^t (erratum E10): rho for existing
            interests, zero for new ones. None carries nothing.
        logits: ``[B, K, L]``, random routing logits, for the extractors that ask for them.
        queries: ``[B, K, d_a]``, the users' own W_u of Eq. 8, for the extractors that ask for them.
    """

    interests: Interests
    carried: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    queries: torch.Tensor | None = None

    def last(self, users: int) -> "Start":
        """Those of the last users alone.

        Args:
            users: how many.

        Returns:
            Views.
        """
        first = len(self.interests.mask) - users
        interests = Interests(*(part[first:] for part in self.interests))
        return Start(interests, *(None if part is None else part[first:] for part in self[1:]))
