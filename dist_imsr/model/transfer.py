"""SML's transfer module: combines the previous span's parameters with those fine-tuned on the new span."""

import math

import torch
from torch import nn
from torch.nn.functional import gelu

_SHIFT = 3.0  # in standard deviations of a row


class Transfer(nn.Module):
    """w_t = f(w_{t-1}, w^_t), row by row.

    From "How to Retrain Recommender System? A Sequential Meta-Learning Method" (SIGIR 2020): the rows w_{t-1}, w^_t and
    their normalised product are stacked to an image of 3 x d, followed by convolutions, a hidden layer and an output
    layer; there is no residual. A filter of k x k covers all three rows at once, since k is at least 3; the padding
    above and below the rows needs no weights here.

    The initial weights approximate w_t = w^_t, so that training starts from plain fine-tuning: up to gelu's curvature
    with at least d hidden units; with h < d hidden units, w_t is a projection of w^_t to h dimensions.

    Args:
        dim: d.
        filters: number of convolution filters.
        kernel: k, the width of a filter; odd.
        hidden: units of the hidden layer.
    """

    scale: torch.Tensor

    def __init__(self, dim: int, filters: int, kernel: int, hidden: int) -> None:
        super().__init__()
        self.scan = nn.Conv1d(3, filters, kernel, padding=kernel // 2)
        self.hidden = nn.Linear(filters * dim, hidden)
        self.output = nn.Linear(hidden, dim)
        self.register_buffer("scale", torch.ones(1))
        width = min(hidden, dim)
        with torch.no_grad():
            basis = torch.linalg.qr(torch.randn(dim, dim)).Q[:width] if width < dim else torch.eye(dim)
            for layer in (self.scan, self.hidden, self.output):
                assert layer.bias is not None
                layer.bias.zero_()
            self.scan.weight[0] = 0.0
            self.scan.weight[0, 1, kernel // 2] = 1.0
            self.hidden.weight[:width], self.output.weight[:] = 0.0, 0.0
            self.hidden.weight[:width, :dim] = basis  # reads the first filter's output
            self.output.weight[:, :width] = basis.T

    def forward(self, previous: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
        """w_t ``[n, d]`` from w_{t-1} and w^_t, ``[n, d]`` each."""
        product = nn.functional.normalize(previous * tuned, dim=-1) * math.sqrt(previous.shape[-1])
        image = torch.stack([previous / self.scale, tuned / self.scale, product], 1)  # [n, 3, d]
        features = shifted_gelu(self.scan(image)).flatten(1)  # [n, filters d]
        return self.output(shifted_gelu(self.hidden(features))) * self.scale


def shifted_gelu(values: torch.Tensor) -> torch.Tensor:
    """gelu(x + 3) - 3, nearly the identity for typical values of normalised rows."""
    return gelu(values + _SHIFT) - _SHIFT
