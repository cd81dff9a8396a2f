"""SML's transfer module: the parameters of yesterday and those tuned on today's data in, those to be used out."""

import math

import torch
from torch import nn
from torch.nn.functional import gelu

_SHIFT = 3.0  # standard deviations of a row


class Transfer(nn.Module):
    """w_t = f(w_{t-1}, w^_t), row by row.

    From "How to Retrain Recommender System? A Sequential Meta-Learning Method" (SIGIR 2020): the rows w_{t-1}, w^_t and
    their normalised product are stacked to an image of 3 x d, which convolutions scan, a hidden layer reads and an
    output layer turns into a row; there is no residual. A filter of k x k covers all three rows at once, since k is at
    least 3; what it would see above and below is padding, which has no weights here.

    As it is built, it returns w^_t as nearly as the hidden layer can, so that the method begins as fine-tuning and the
    transfer learns from there: exactly, but for gelu's curvature, with d hidden units or more; with h < d, its
    projection on h dimensions.

    Args:
        dim: d.
        filters: how many convolutions.
        kernel: k, their width; odd.
        hidden: units of the hidden layer.
    """

    scale: torch.Tensor

    def __init__(self, dim: int, filters: int, kernel: int, hidden: int) -> None:
        super().__init__()
        self.scan = nn.Conv1d(3, filters, kernel, padding=kernel // 2)
        self.hidden = nn.Linear(filters * dim, hidden)
        self.output = nn.Linear(hidden, dim)
        self.register_buffer("scale", torch.ones(1))
        through = min(hidden, dim)
        with torch.no_grad():
            basis = torch.linalg.qr(torch.randn(dim, dim)).Q[:through] if through < dim else torch.eye(dim)
            for layer in (self.scan, self.hidden, self.output):
                assert layer.bias is not None
                layer.bias.zero_()
            self.scan.weight[0] = 0.0
            self.scan.weight[0, 1, kernel // 2] = 1.0
            self.hidden.weight[:through], self.output.weight[:] = 0.0, 0.0
            self.hidden.weight[:through, :dim] = basis  # what the first filter found
            self.output.weight[:, :through] = basis.T

    def forward(self, previous: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
        """Transfers rows.

        Args:
            previous: w_{t-1}, ``[n, d]`` floating.
            tuned: w^_t, ``[n, d]``.

        Returns:
            w_t, ``[n, d]``.
        """
        product = nn.functional.normalize(previous * tuned, dim=-1) * math.sqrt(previous.shape[-1])
        image = torch.stack([previous / self.scale, tuned / self.scale, product], 1)  # [n, 3, d]
        found = shifted_gelu(self.scan(image)).flatten(1)  # [n, filters d]
        return self.output(shifted_gelu(self.hidden(found))) * self.scale


def shifted_gelu(values: torch.Tensor) -> torch.Tensor:
    """gelu, moved so that it is nearly the identity around zero and bends where rows seldom are."""
    return gelu(values + _SHIFT) - _SHIFT
