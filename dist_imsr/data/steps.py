"""A phase's batches, read ahead by a thread, and their way to a device."""

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

AnyBatch = TypeVar("AnyBatch", bound="Movable")
Follow = Callable[[Iterable[Any], str, int], Iterator[Any]]
"""Goes through batches on their way to the device, given a name of the phase and the users of a global one."""


class Movable:
    """A dataclass of tensors that goes to a device as a whole."""

    def to(self: AnyBatch, device: torch.device) -> AnyBatch:
        """Copies every tensor to a device; of pinned ones the copies may be under way yet.

        Args:
            device: where it is wanted.

        Returns:
            A batch of the same kind; what is there already is shared with this one.
        """
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self: AnyBatch, device: torch.device) -> AnyBatch:
        """Brings every tensor to where a device copies from beside its other work.

        Args:
            device: that will want it.

        Returns:
            A batch of the same kind.
        """
        return self._each(lambda tensor: devices.pin(tensor, device))

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory of every tensor until a stream of a CUDA device is done with it.

        Args:
            stream: which uses them.
        """

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            tensor.record_stream(stream)
            return tensor

        self._each(keep)

    def _each(self: AnyBatch, change: Callable[[torch.Tensor], torch.Tensor]) -> AnyBatch:
        def changed(value: Any) -> Any:
            if isinstance(value, JaggedTensor):
                return JaggedTensor(change(value.values()), lengths=change(value.lengths()))
            return change(value) if isinstance(value, torch.Tensor) else value

        return type(self)(**{field.name: changed(getattr(self, field.name)) for field in fields(self)})  # type: ignore[arg-type]


class Steps(Iterable[AnyBatch]):
    """A fixed number of batches, read ahead by a thread.

    Args:
        read: makes the batch of a step.
        steps: how many there are.
        prefetch: how many may wait.
    """

    def __init__(self, read: Callable[[int], AnyBatch], steps: int, prefetch: int) -> None:
        self._read, self._steps, self._prefetch = read, steps, prefetch

    def __len__(self) -> int:
        return self._steps

    def read(self, step: int) -> AnyBatch:
        """Makes the batch of a step.

        Args:
            step: from 0 on.

        Returns:
            The batch.
        """
        return self._read(step)

    def after(self, done: int) -> "Steps[AnyBatch]":
        """The batches of the later steps.

        Args:
            done: how many steps there were before.

        Returns:
            The rest.
        """
        return Steps(lambda step: self._read(done + step), self._steps - done, self._prefetch)

    def on(self, device: torch.device) -> "Iterator[tuple[AnyBatch, AnyBatch | None]]":
        """The batches on a device, each one copied there while the device is at work on the one before it.

        Args:
            device: where they are wanted.

        Yields:
            A batch, and the one after it, whose copies may be under way yet; None after the last.
        """
        pinned = iter(Steps(lambda step: self._read(step).pinned(device), self._steps, self._prefetch))

        @Phase("data")
        def sent() -> AnyBatch | None:
            batch = next(pinned, None)
            with devices.prefetch_stream(device):
                return batch and batch.to(device)

        batch = sent()
        while batch is not None:
            devices.wait_for_prefetch(device, batch)  # before the next copy is under way, which would be waited for too
            following = sent()
            yield batch, following
            batch = following

    def __iter__(self) -> Iterator[AnyBatch]:
        ready: queue.Queue[AnyBatch | BaseException] = queue.Queue(self._prefetch)
        left = threading.Event()

        def put(value: AnyBatch | BaseException) -> None:
            while not left.is_set():
                with contextlib.suppress(queue.Full):
                    ready.put(value, timeout=0.1)
                    return

        def work() -> None:
            try:
                for step in range(self._steps):
                    if left.is_set():
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
            left.set()
            thread.join()


def one_by_one(places: Sequence[tuple[Steps[AnyBatch], int]], prefetch: int) -> Steps[AnyBatch]:
    """Steps of several phases as steps of one.

    Args:
        places: each by its phase and its number there.
        prefetch: how many may wait.

    Returns:
        The steps in this order.
    """

    def read(step: int) -> AnyBatch:
        steps, own = places[step]
        return steps.read(own)

    return Steps(read, len(places), prefetch)
