"""A synthetic catalogue and its users, for ranking.

They resemble ComiRec-DR trained on drifting data: items' directions fill few of the dimensions evenly, their lengths
are log-normal around 1.5; a user's interests are the directions of items plus as much noise, with lengths just below 1.
Dot products then have a deviation of about 0.5, and an item's largest one exceeds a target's score two to three times
as often as its score does, as in that model. Wanted ranks are log-uniform over the catalogue: a trained model finds
many targets early, some late.
"""

import math

import torch
from torch.nn.functional import normalize

_DRAWN_ROWS = 1 << 16  # items drawn at a time, for a low peak of memory
_LENGTH, _SPREAD = 1.5, 0.45  # of the items' log-normal lengths: the median, and the logarithm's deviation
_DECAY = 0.75  # coordinate j varies by j^-_DECAY


def draw_items(items: int, dim: int, seed: int) -> torch.Tensor:
    """Embeddings ``[items, dim]`` float32, the same on every rank."""
    draw = torch.Generator().manual_seed(seed)
    table = torch.empty(items, dim)
    for part in table.split(_DRAWN_ROWS):
        lengths = _LENGTH * torch.exp(_SPREAD * torch.randn(len(part), 1, generator=draw))
        part.copy_(lengths * _directions(len(part), dim, draw))
    return table


def draw_biases(items: int, seed: int) -> torch.Tensor:
    """The logarithm of 1 + interactions of items with a power law of popularity, ``[items]`` float32."""
    draw = torch.Generator().manual_seed(seed + 2)
    return (1 / torch.rand(items, generator=draw).clamp(min=1 / items)).log1p()


def draw_users(table: torch.Tensor, users: int, interests: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Users' interests and the ranks of their targets, the same on every rank.

    Args:
        table: of `draw_items`.
        users: number of users.
        interests: K of every user.
        seed: of the draws.

    Returns:
        ``[users, K, d]`` float32 and ``[users]`` int64 from 1 to the number of items, on the table's device.
    """
    draw = torch.Generator().manual_seed(seed + 1)
    items, dim = table.shape
    liked = normalize(table[torch.randint(items, (users, interests), generator=draw).to(table.device)], dim=-1)
    noise = _directions(users * interests, dim, draw).view_as(liked).to(table.device)
    lengths = 1 - 0.1 * torch.rand(users, interests, 1, generator=draw)
    ranks = torch.exp(math.log(items) * torch.rand(users, generator=draw)).long()
    return normalize(liked + noise, dim=-1) * lengths.to(table.device), ranks.clamp(1, items)


def _directions(count: int, dim: int, draw: torch.Generator) -> torch.Tensor:
    """Vectors of length 1 with larger earlier coordinates."""
    return normalize(torch.randn(count, dim, generator=draw) * torch.arange(1, dim + 1) ** -_DECAY, dim=1)
