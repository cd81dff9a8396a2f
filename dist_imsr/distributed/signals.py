"""Signals that ask a job to stop: it may finish what it is at first."""

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
_ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """While its context lasts, SIGTERM, SIGUSR1 and Ctrl-C end the process, or are noted where it has patience.

    A second Ctrl-C ends it all the same. Ending does not wait for Python: the main thread may be inside an exchange
    with a rank that is gone.
    """

    def __init__(self) -> None:
        self.status = 0
        """The exit status that the first signal asks for; 0 without one."""
        self._patient = False

    @contextmanager
    def patience(self) -> Iterator[None]:
        """While this context lasts, a first signal only sets the status."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    def __enter__(self) -> "StopSignals":
        self._told, self._tells = socket.socketpair()
        self._tells.setblocking(False)
        self._earlier = {number: signal.signal(number, lambda *_: None) for number in _ASKING}
        self._earlier_fd = signal.set_wakeup_fd(self._tells.fileno())
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._earlier_fd)
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._tells.shutdown(socket.SHUT_RDWR)  # wakes the listener, whoever else holds the socket
        self._tells.close()
        self._thread.join()
        self._told.close()

    def _listen(self) -> None:
        presses = 0
        while told := self._told.recv(1):
            number = told[0]
            if number not in _ASKING:
                continue
            presses += number == signal.SIGINT
            status = INTERRUPTED if number == signal.SIGINT else REQUEUE
            if presses > 1 or not self._patient:
                logger.warning("%s: stopped at once", signal.Signals(number).name)
                os._exit(status)
            if not self.status:
                self.status = status
                again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
                logger.warning("%s: stopping after this step%s", signal.Signals(number).name, again)
