"""Signals that stop a job, at once or after the current step."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from dist_imsr.distributed.command import INTERRUPTED, REQUEUE

logger = logging.getLogger(__name__)
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequested(Exception):
    """All ranks agreed to stop, since one of them received a signal.

    Args:
        status: the exit status for that signal.
        resumable: whether the current state may be saved.
    """

    def __init__(self, status: int, resumable: bool) -> None:
        super().__init__(f"stop with status {status}")
        self.status, self.resumable = status, resumable


class StopSignals:
    """Inside this context, SIGTERM, SIGUSR1 and Ctrl-C end the process; inside `deferred`, the first is only recorded.

    A second Ctrl-C always ends the process. A thread ends it without waiting for Python: the main thread may hang in a
    collective with a rank that has ended.
    """

    def __init__(self) -> None:
        self.status = 0
        """The exit status for the first deferred signal; 0 if there was none."""
        self._deferred = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside this context, the first signal only sets the status."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def __enter__(self) -> "StopSignals":
        self._receiver, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        self._previous_handlers = {number: signal.signal(number, lambda *_: None) for number in _STOP_SIGNALS}
        self._previous_fd = signal.set_wakeup_fd(self._sender.fileno())
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._sender.shutdown(socket.SHUT_RDWR)  # wakes the listener even if a child process holds the socket too
        self._sender.close()
        self._thread.join()
        self._receiver.close()

    def _listen(self) -> None:
        presses = 0
        while received := self._receiver.recv(1):
            number = received[0]
            if number not in _STOP_SIGNALS:
                continue
            presses += number == signal.SIGINT
            status = INTERRUPTED if number == signal.SIGINT else REQUEUE
            if presses > 1 or not self._deferred:
                logger.warning("%s: stopped at once", signal.Signals(number).name)
                os._exit(status)
            if not self.status:
                self.status = status
                again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
                logger.warning("%s: stopping after this step%s", signal.Signals(number).name, again)
