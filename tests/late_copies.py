"""Copies to the host that are as late as those of a CUDA device may be, without a device."""

import threading
from contextlib import contextmanager
from unittest.mock import patch

import torch

from dist_imsr import devices

_LATE = 0.05  # seconds that a reader waits


class LateCopies:
    """Copies that are made when the training waits for them, or by their reader after a while; until then, garbage.

    Attributes:
        awaited: the number of copies for which the training waited.
    """

    def __init__(self):
        self._pending, self._lock, self._made, self.awaited = [], threading.Lock(), threading.Event(), 0

    def copy_to_host(self, tensor, rows=None):
        tensor = tensor.detach()
        copy = torch.full_like(tensor if rows is None else tensor[rows], 77)
        with self._lock:
            self._made.clear()
            self._pending.append((copy, tensor, rows))
        return copy

    def wait_for_copies(self, device):
        self.awaited += len(self._pending)
        self._make()

    def copies_done(self, device):
        def wait():
            self._made.wait(_LATE)
            self._make()

        return wait

    def _make(self):
        with self._lock:
            for copy, tensor, rows in self._pending:
                copy.copy_(tensor if rows is None else tensor[rows])
            self._pending.clear()
            self._made.set()


@contextmanager
def late_copies():
    """Makes all copies to the host late in this context."""
    late = LateCopies()
    names = ("copy_to_host", "wait_for_copies", "copies_done")
    with patch.multiple(devices, synchronize=late.wait_for_copies, **{name: getattr(late, name) for name in names}):
        yield late
