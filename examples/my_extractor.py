"""A base model outside of the package: each stored interest pools the items that it attends to.

python launch/train.py --import examples.my_extractor --model.base pooling --model.pooling.temperature 0.5 \
    --config configs/demo.yaml --run_dir runs/pooling
"""

from dataclasses import dataclass

import torch
from torch import nn

from dist_imsr.model.base import Extractor
from dist_imsr.model.extractors import register_base_model


@dataclass
class PoolingConfig:
    """The options of pooling.

    Args:
        temperature: of the softmax over a user's items.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"model.pooling.temperature: {self.temperature} is impossible here; expected above 0")


@register_base_model("pooling", PoolingConfig)
class Pooling(Extractor):
    """h_k = tanh(W sum_i softmax_i(e_i . h_k^{t-1} / temperature) e_i), with one matrix W for all."""

    def __init__(self, config):
        super().__init__()
        self.temperature = config.pooling.temperature
        self.output = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, items, mask, start):
        """Items ``[B, L, d]`` with their mask ``[B, L]`` in, interests ``[B, K, d]`` in the slots of ``start`` out."""
        logits = start.interests.vectors @ items.mT / self.temperature  # [B, K, L]
        weights = logits.masked_fill(~mask.unsqueeze(1), torch.finfo(logits.dtype).min).softmax(-1)
        return start.interests.replace(self.output(weights @ items).tanh())
