"""Histories of users for the base models with a state."""

import torch

from dist_imsr.model.interests import Interests, Start


def histories(lengths, dim, dtype=torch.float64):
    """Items ``[B, L, dim]`` and their mask; padding at the end is not zero, so that reading it changes results."""
    items = torch.randn(len(lengths), max(lengths), dim, dtype=dtype)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return torch.where(mask.unsqueeze(-1), items, 9.0), mask


def initial_start(module, users, dim, states=None):
    """The start of a module: random vectors, which it must ignore, and zero states by default."""
    dtype = next(module.parameters()).dtype
    stored = Interests(
        torch.randn(users, module.interests, dim, dtype=dtype),
        torch.ones(users, module.interests, dtype=torch.bool),
    )
    zeros = torch.zeros(users, module.interests, module.state_dim, dtype=dtype)
    return Start(stored, states=zeros if states is None else states)
