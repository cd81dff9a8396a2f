"""The batches of an epoch or a sweep: read ahead by a thread, and copied to a device."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torchrec import JaggedTensor

from dist_imsr import devices
from dist_imsr.phases import Phase

AnyBatch = TypeVar("AnyBatch", bound="TensorBatch")
Follow = Callable[[Iterable[Any], str, int], Iterator[Any]]
"""Iterates over batches on the device and reports progress, given a title and the number of users in a global batch."""


class TensorBatch:
    """Base class of dataclasses of tensors; has the methods of torchrec's ``Pipelineable``."""

    _host: Any = None

    def to(self: AnyBatch, device: torch.device) -> AnyBatch:
        """Copies every tensor to a device, asynchronously from pinned memory; tensors on the device are shared."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        moved._host = self.host
        return moved

    @property
    def host(self: AnyBatch) -> AnyBatch:
        """The batch that was copied to the device, from which lengths are read without waiting for the device."""
        return self if self._host is None else self._host

    def pin_memory(self: AnyBatch, device: torch.device) -> AnyBatch:
        """Copies every tensor to pinned memory, if the device is a CUDA device."""
        return self._map(lambda tensor: devices.pin(tensor, device))

    def record_stream(self, stream: torch.Stream) -> None:
        """Calls ``torch.Tensor.record_stream`` for every tensor."""

        def record(tensor: torch.Tensor) -> torch.Tensor:
            tensor.record_stream(stream)
            return tensor

        self._map(record)

    def _map(self: AnyBatch, function: Callable[[torch.Tensor], torch.Tensor]) -> AnyBatch:
        def mapped(value: Any) -> Any:
            if isinstance(value, JaggedTensor):
                return JaggedTensor(function(value.values()), lengths=function(value.lengths()))
            return function(value) if isinstance(value, torch.Tensor) else value

        return type(self)(**{field.name: mapped(getattr(self, field.name)) for field in fields(self)})  # type: ignore[arg-type]


class Steps(Iterable[AnyBatch]):
    """A fixed number of batches; iterating reads ahead in a thread.

    Args:
        read: makes the batch of a step.
        steps: the number of batches.
        prefetch: the maximal number of batches that wait.
    """

    def __init__(self, read: Callable[[int], AnyBatch], steps: int, prefetch: int) -> None:
        self._read, self._steps, self._prefetch = read, steps, prefetch

    def __len__(self) -> int:
        return self._steps

    def read(self, step: int) -> AnyBatch:
        """Makes the batch of one step, 0 to ``len(self) - 1``, in the calling thread."""
        return self._read(step)

    def after(self, done: int) -> "Steps[AnyBatch]":
        """The batches without the first ``done`` ones."""
        return Steps(lambda step: self._read(done + step), self._steps - done, self._prefetch)

    def on(self, device: torch.device) -> "Iterator[tuple[AnyBatch, AnyBatch | None]]":
        """Copies the batches to a device; the copy of each batch overlaps with the work on the one before it.

        Yields:
            A batch and the next one, whose copy may still be running; None after the last.
        """
        pinned = iter(Steps(lambda step: self._read(step).pin_memory(device), self._steps, self._prefetch))

        @Phase("data")
        def copy_next() -> AnyBatch | None:
            batch = next(pinned, None)
            with devices.prefetch_stream(device):
                return batch and batch.to(device)

        batch = copy_next()
        while batch is not None:
            devices.wait_for_prefetch(device, batch)  # before the next copy starts, else it would wait for that too
            following = copy_next()
            yield batch, following
            batch = following

    def __iter__(self) -> Iterator[AnyBatch]:
        ready: queue.Queue[AnyBatch | BaseException] = queue.Queue(self._prefetch)
        stopped = threading.Event()

        def put(value: AnyBatch | BaseException) -> None:
            while not stopped.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(value, timeout=0.1)
                    return

        def work() -> None:
            try:
                for step in range(self._steps):
                    if stopped.is_set():
                        return
                    put(self._read(step))
            except BaseException as error:  # raised again by the reader
                put(error)

        thread = threading.Thread(target=work, name="prefetch", daemon=True)
        thread.start()
        try:
            for _ in range(self._steps):
                value = ready.get()
                if isinstance(value, BaseException):
                    raise value
                yield value
        finally:
            stopped.set()
            thread.join()


def chain_steps(places: Sequence[tuple[Steps[AnyBatch], int]], prefetch: int) -> Steps[AnyBatch]:
    """Joins steps of several sources in a given order.

    Args:
        places: the source of each step, and the step's number there.
        prefetch: the maximal number of batches that wait.
    """

    def read(step: int) -> AnyBatch:
        steps, own = places[step]
        return steps.read(own)

    return Steps(read, len(places), prefetch)
