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
    return JaggedTensor(items, lengths=torch.full((1,), len(items), device=items.device))  # a fill waits for nothing


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


def last_rows(sequences: JaggedTensor, count: int, host: JaggedTensor) -> JaggedTensor:
    """Views of the last ``count`` sequences; ``host`` are the same sequences on the host."""
    first = len(host.lengths()) - count
    skipped = int(host.lengths()[:first].sum())
    return JaggedTensor(sequences.values()[skipped:], lengths=sequences.lengths()[first:])


def longest(sequences: JaggedTensor) -> int:
    """The largest length; 0 without sequences."""
    lengths = sequences.lengths()
    return int(lengths.max()) if len(lengths) else 0


def pad(values: torch.Tensor, sequences: JaggedTensor, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads rows of numbers to the longest sequence.

    Args:
        values: ``[sum of lengths, d]``, one row for each value of the sequences.
        sequences: B, on the same device.
        longest: L, `longest` of the sequences on the host, so that no device is waited for.

    Returns:
        ``[B, L, d]``, and the mask ``[B, L]`` that is false for padding.
    """
    lengths = sequences.lengths()
    mask = torch.arange(longest, device=values.device) < lengths.unsqueeze(1)
    return JaggedTensor(values, lengths=lengths).to_padded_dense(longest), mask


def owners_of(sequences: JaggedTensor) -> torch.Tensor:
    """The index of the sequence of each value, ``[sum of lengths]`` int64, ascending from 0 to B - 1."""
    lengths, count = sequences.lengths(), len(sequences.values())
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=count)


def places_in_padding(sequences: JaggedTensor, longest: int) -> torch.Tensor:
    """Where `pad` puts each value, ``[sum of lengths]`` int64 indices of ``[B * L]``, ascending."""
    owners, lengths = owners_of(sequences), sequences.lengths()
    skipped = torch.arange(len(lengths), device=lengths.device) * longest - (lengths.cumsum(0) - lengths)
    return torch.arange(len(owners), device=owners.device) + skipped[owners]
