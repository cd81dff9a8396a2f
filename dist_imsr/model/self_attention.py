"""Self-attention with per-user queries, the extractor of ComiRec-SA."""

import torch
from torch import nn

from dist_imsr.model.base import Extractor
from dist_imsr.model.interests import Interests, Start


class SelfAttention(Extractor):
    """ComiRec-SA with per-user queries (Eq. 7-9): W_1 is shared, W_u is stored with the user's interests.

    A stored interest joins the sequence as one more item, for itself only, with log rho added to its logit: it counts
    as rho items (erratum E10).

    Args:
        dim: d, the width of embeddings and interests.
        query_dim: d_a, the width of queries.
        positions: number of trainable position embeddings, the longest possible history, oldest item first; they are
            added to the items in the attention logits, not in the sum; 0 for none.
    """

    def __init__(self, dim: int, query_dim: int, positions: int = 0) -> None:
        super().__init__()
        self.query_dim = query_dim
        self.transform = nn.Linear(dim, query_dim, bias=False)  # W_1
        self.positions = nn.Parameter(torch.zeros(positions, dim)) if positions else None

    def forward(self, items: torch.Tensor, mask: torch.Tensor, start: Start) -> Interests:
        """Attends to items; shapes as in `Extractor`."""
        stored, queries = start.interests, start.queries
        assert queries is not None
        positioned = items if self.positions is None else items + self.positions[: items.shape[1]]
        logits = (queries @ torch.tanh(self.transform(positioned)).mT).to(items.dtype)  # [B, K, L]
        logits = logits.masked_fill(~mask.unsqueeze(1), torch.finfo(items.dtype).min)
        if start.carried is None:
            return stored.replace((logits.softmax(-1) @ items).to(items.dtype))
        own = (queries * torch.tanh(self.transform(stored.vectors))).sum(-1).to(items.dtype) + start.carried.log()
        weights = torch.cat([logits, own.unsqueeze(-1)], -1).softmax(-1)
        return stored.replace((weights[..., :-1] @ items).to(items.dtype) + weights[..., -1:] * stored.vectors)

    def forward_flops(self, users: int, length: int, slots: int) -> int:
        """W_1, the logits and the weighted sums; as in `Extractor`."""
        dim = self.transform.in_features
        return users * length * (2 * dim * self.query_dim + 2 * slots * (self.query_dim + dim))
