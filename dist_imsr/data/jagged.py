"""Sequences of different lengths, one after the other."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchrec import JaggedTensor

from dist_imsr.data.schedule import ranges


def jagged(values: Any, lengths: Any) -> JaggedTensor:
    """Sequences of ids.

    Args:
        values: ``[sum of lengths]`` whole numbers.
        lengths: ``[B]`` whole numbers.

    Returns:
        B sequences, int64.
    """
    values, lengths = (torch.from_numpy(np.asarray(part, dtype=np.int64)) for part in (values, lengths))
    return JaggedTensor(values, lengths=lengths)


def appended(pieces: Sequence[tuple[np.ndarray, np.ndarray]]) -> JaggedTensor:
    """Makes each sequence of pieces, one after the other.

    Args:
        pieces: of all sequences: values ``[sum of lengths]``, and the lengths of the sequences' pieces ``[B]``.

    Returns:
        B sequences, int64.
    """
    total = sum(lengths for _, lengths in pieces)
    values, place = np.empty(np.sum(total), dtype=np.int64), np.cumsum(total) - total
    for piece, lengths in pieces:
        values[ranges(place, lengths)] = piece
        place = place + lengths
    return jagged(values, total)


def last(sequences: JaggedTensor, count: int) -> JaggedTensor:
    """The last of some sequences.

    Args:
        sequences: B of them.
        count: how many are wanted, at most B.

    Returns:
        Views of them.
    """
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
    """The place of each value's sequence.

    Args:
        sequences: B of them.

    Returns:
        ``[sum of lengths]`` int64, 0 to B - 1 in ascending order.
    """
    lengths = sequences.lengths()
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
