"""The interface of all base models: from a user's items to the user's interests (Eq. 1)."""

import torch
from torch import nn

from dist_imsr.model.interests import Interests, Start


class Extractor(nn.Module):
    """f_user of Eq. 1, the base class of all base models.

    Attributes:
        logit_scale: standard deviation of the random routing logits in `Start`; 0 for none.
        query_dim: d_a, the width of the per-user queries in `Start`; 0 for none.
        state_dim: m, the width of the recurrent state per interest; 0 for none. With a state, a history continues the
            previous one, and all users have ``model.interests`` interests.
    """

    logit_scale: float = 0.0
    query_dim: int = 0
    state_dim: int = 0

    def forward(self, items: torch.Tensor, mask: torch.Tensor, start: Start) -> Interests:
        """Extracts the interests of a block of users.

        Args:
            items: ``[B, L, d]`` floating, embeddings e_i of each user's history in time order.
            mask: ``[B, L]`` bool, false where ``items`` is padding, which is at the end.
            start: the stored interests and the extractor's other inputs.

        Returns:
            H_u^t in the slots of ``start``, ``[B, K, d]``, with the states after the history if ``state_dim`` > 0.
        """
        raise NotImplementedError

    def regularisation(self, interests: Interests) -> torch.Tensor:
        """The base model's own regularisation term of the training loss, already weighted.

        Args:
            interests: the output of `forward`.

        Returns:
            A scalar, summed over users; zero by default.
        """
        return interests.vectors.new_zeros(())

    def activation_numbers(self, users: int, length: int, slots: int) -> int:
        """Estimates the numbers that `forward` and its backward hold at most, besides items and their gradients.

        Args:
            users: B.
            length: L, to which histories are padded.
            slots: K, to which interests are padded.

        Returns:
            By default that of weights between each item and each interest, five times.
        """
        return 5 * users * length * slots

    def forward_flops(self, users: int, length: int, slots: int) -> int:
        """Estimates the floating-point operations of `forward`; arguments as in `activation_numbers`.

        Returns:
            By default that of every item passing through all weights.
        """
        return 2 * users * length * sum(weight.numel() for weight in self.parameters())
