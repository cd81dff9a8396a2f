"""LimaRec: multi-interest linear self-attention, whose running sums summarise a user's whole history."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from dist_imsr.checks import require
from dist_imsr.model.base import Extractor
from dist_imsr.model.interests import Interests, Start


@dataclass
class LimaRecConfig:
    """The base model limarec.

    Args:
        features: the width of the feature map phi, of queries and keys; the state of an interest is features x (dim +
            2) numbers.
    """

    features: int = 16

    def __post_init__(self) -> None:
        require(self.features >= 1, "model.limarec.features", self.features, "at least 1")


class LinearAttention(Extractor):
    """Linear self-attention with K interests, as in LimaRec ("Rethinking Lifelong Sequential Recommendation").

    With phi(x) = elu(x) + 1 and a history e_1 .. e_n, interest k keeps the running sums

        S_k = sum_i phi(W_k^k e_i) (W_v e_i)^T,  z_k = sum_i phi(W_k^k e_i)

    and the latest item reads them: h_k = phi(q)^T S_k / phi(q)^T z_k with q = W_q^k e_n. The sums are continued, so a
    history in several pieces gives the same result as the whole history; phi(q) is part of the state, so a piece may be
    empty. A state of zeros means no interactions, and gives interests of zeros.

    The paper's details are not public. This implementation has one layer without positions, residual or feed-forward.
    W_v is shared by the interests and initialised to the identity, so that interests are initially means of item
    embeddings. Queries and keys have biases; weights and biases of the keys are initialised differently for each
    interest.

    Cost of a step: K f d multiplications per item, no loop over time. State: f (d + 2) float32 per interest. Sums are
    computed in the items' precision, also under autocast.

    Args:
        dim: d, the width of embeddings and interests.
        interests: K, the interests of every user.
        features: f, the width of phi.
    """

    def __init__(self, dim: int, interests: int, features: int) -> None:
        super().__init__()
        self.interests, self.features = interests, features
        self.state_dim = features * (dim + 2)
        self.query = nn.Linear(dim, interests * features)
        self.key = nn.Linear(dim, interests * features)
        self.value = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.value.weight)

    def forward(self, items: torch.Tensor, mask: torch.Tensor, start: Start) -> Interests:
        """Adds the items to the sums and reads them; shapes as in `Extractor`."""
        assert start.states is not None
        dim, features, stored = items.shape[-1], self.features, start.interests
        with torch.autocast(items.device.type, enabled=False):
            # A block without users has K = 0.
            states = start.states if len(items) else start.states.new_zeros(0, self.interests, self.state_dim)
            sums, totals, queries = states.to(items.dtype).split([features * dim, features, features], -1)
            keys = self._features(self.key, items) * mask[..., None, None]  # [B, L, K, f]
            sums = sums.unflatten(-1, (features, dim)) + torch.einsum("blkf,bld->bkfd", keys, self.value(items))
            totals = totals + keys.sum(1)
            latest = mask & ~functional.pad(mask[:, 1:], (0, 1))  # [B, L], true for the last item of each history
            newest = torch.einsum("bl,bld->bd", latest.to(items.dtype), items)
            queries = torch.where(mask.any(1)[:, None, None], self._features(self.query, newest), queries)
            weight = (queries * totals).sum(-1, keepdim=True)
            read = torch.einsum("bkf,bkfd->bkd", queries, sums) / torch.where(weight > 0, weight, 1.0)
            states = torch.cat([sums.flatten(-2), totals, queries], -1)
        return stored.replace(read[:, : stored.mask.shape[1]], states[:, : stored.mask.shape[1]])

    def _features(self, projection: nn.Linear, items: torch.Tensor) -> torch.Tensor:
        """Phi of a projection, ``[..., K, f]``; positive."""
        return functional.elu(projection(items)).unflatten(-1, (self.interests, self.features)) + 1

    def activation_numbers(self, users: int, length: int, slots: int) -> int:
        """Keys of each item for each interest; as in `Extractor`."""
        return 4 * users * length * slots * self.features
