"""Histories of users for the base models that keep a state."""

import torch

from dist_imsr.model.interests import Interests, Start


def histories(lengths, dim, dtype=torch.float64):
    """Items ``[B, L, dim]`` and their mask; padding at the end holds numbers that would show if they were read."""
    items = torch.randn(len(lengths), max(lengths), dim, dtype=dtype)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return torch.where(mask.unsqueeze(-1), items, 9.0), mask


def beginning(module, users, dim, states=None):
    """What a module starts from: vectors that it must not care about, and zeros for states."""
    dtype = next(module.parameters()).dtype
    stored = Interests(
        torch.randn(users, module.interests, dim, dtype=dtype),
        torch.ones(users, module.interests, dtype=torch.bool),
    )
    nothing = torch.zeros(users, module.interests, module.state_dim, dtype=dtype)
    return Start(stored, states=nothing if states is None else states)
