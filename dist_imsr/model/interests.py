"""The padded view of users' interest vectors."""

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
