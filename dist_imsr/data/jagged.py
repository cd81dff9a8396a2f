"""Helpers for jagged tensors: sequences of different lengths, concatenated."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.schedule import ranges


def jagged(values: Any, lengths: Any) -> JaggedTensor:
    """Makes B int64 sequences from ``[sum of lengths]`` values and ``[B]`` lengths."""
    values, lengths = (torch.from_numpy(np.asarray(part, dtype=np.int64)) for part in (values, lengths))
    return JaggedTensor(values, lengths=lengths)


def one_sequence(items: torch.Tensor) -> JaggedTensor:
    """Item ids ``[n]`` as one sequence, on their device."""
    return JaggedTensor(items, lengths=torch.tensor([len(items)], device=items.device))


def concat_rows(pieces: Sequence[tuple[np.ndarray, np.ndarray]]) -> JaggedTensor:
    """Concatenates the i-th sequences of all pieces, for each i.

    Args:
        pieces: the values ``[sum of lengths]`` and lengths ``[B]`` of B sequences each.

    Returns:
        B sequences, int64.
    """
    total = sum(lengths for _, lengths in pieces)
    values, place = np.empty(np.sum(total), dtype=np.int64), np.cumsum(total) - total
    for piece, lengths in pieces:
        values[ranges(place, lengths)] = piece
        place = place + lengths
    return jagged(values, total)


def last_rows(sequences: JaggedTensor, count: int) -> JaggedTensor:
    """Views of the last ``count`` sequences."""
    lengths = sequences.lengths()[len(sequences.lengths()) - count :]
    return JaggedTensor(sequences.values()[len(sequences.values()) - int(lengths.sum()) :], lengths=lengths)


def pad(values: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads sequences to the longest of them.

    Args:
        values: ``[sum of lengths, d]``.
        lengths: ``[B]`` int64.

    Returns:
        ``[B, L, d]``, and the mask ``[B, L]`` that is false for padding.
    """
    longest = int(lengths.max()) if len(lengths) else 0
    mask = torch.arange(longest, device=values.device) < lengths.unsqueeze(1)
    return JaggedTensor(values, lengths=lengths).to_padded_dense(longest), mask


def owners_of(sequences: JaggedTensor) -> torch.Tensor:
    """The index of the sequence of each value, ``[sum of lengths]`` int64, ascending from 0 to B - 1."""
    lengths = sequences.lengths()
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
