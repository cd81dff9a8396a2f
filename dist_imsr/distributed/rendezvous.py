"""How the ranks of a job meet: rank 0 listens, the others report to it, and who waits for long says for whom.

A rank may wait in vain, since RANK and WORLD_SIZE are left over from another job, a rank was never started, or another
program listens at the port. Torch's own rendezvous is silent then, and deaf to Ctrl-C. So the ranks meet over plain
sockets first, and make torch's store at the same port once all are there.
"""

import contextlib
import errno
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise

import torch.distributed as dist

from dist_imsr.distributed.command import BAD_INPUT, FAILED, NotStarted
from dist_imsr.launcher import RankInfo, variables_of_ranks

logger = logging.getLogger(__name__)
_LOCAL = "127.0.0.1"
_FIRST_NOTICE, _NEXT_NOTICE = 5.0, 60.0
_FOREIGN = 8.0  # so long may a listener that is not rank 0 be there; rank 0 itself answers at once
_RETRY, _SLICE = 0.1, 0.5
_WELCOME, _GO = b"welcome\n", b"go\n"
_LONGEST = 256  # bytes of a message
_OTHER_PORT = "choose another with --master_port of deepspeed or torchrun, or with MASTER_PORT for other launchers"


def open_store(info: RankInfo, timeout_seconds: float) -> dist.Store:
    """Waits for all ranks, and makes the store through which torch connects them.

    A rank that waits for 5 seconds logs its address and the missing ranks, and again every minute.

    Args:
        info: this rank. The address of a lone rank does not matter.
        timeout_seconds: the longest wait for the others; also that of the store.

    Returns:
        The store of the process group.

    Raises:
        NotStarted: on this rank, if its port is taken, the others do not come, or another program answers.
    """
    timeout = timedelta(seconds=timeout_seconds)
    if info.world_size == 1:
        store = dist.TCPStore(_LOCAL, 0, 1, is_master=True, timeout=timeout)
    elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun itself listens, for all ranks
        wait = _Wait(info, timeout_seconds)
        _dial(info, wait).close()
        store = dist.TCPStore(info.address, info.port, info.world_size, is_master=False, timeout=timeout)
    elif info.rank == 0:
        listener = _listen(info)
        _receive_others(info, listener, _Wait(info, timeout_seconds))
        store = dist.TCPStore(
            _LOCAL, info.port, info.world_size, is_master=True, timeout=timeout, master_listen_fd=listener.detach()
        )
    else:
        _report_to_rank_0(info, _Wait(info, timeout_seconds), timeout_seconds)
        store = dist.TCPStore(info.address, info.port, info.world_size, is_master=False, timeout=timeout)
    return dist.PrefixStore("default_pg", store)


class _Wait:
    """A wait that is announced, and that ends.

    Args:
        info: the rank that waits.
        seconds: its longest wait.
    """

    def __init__(self, info: RankInfo, seconds: float) -> None:
        now = time.monotonic()
        self._info, self._seconds, self._due, self._end = info, seconds, now + _FIRST_NOTICE, now + seconds
        self._alone = f"to run one rank alone: unset {variables_of_ranks()}"

    def check(self, subject: Callable[[], str]) -> None:
        """Logs what the rank waits for if that is due, and raises NotStarted after the longest wait."""
        now, rank = time.monotonic(), self._info.rank
        if now >= self._end:
            raise NotStarted(
                f"waited {self._seconds:g} seconds (timeout_seconds) {subject()}: start all {self._info.world_size} "
                f"ranks, or, {self._alone}",
                FAILED,
            )
        if now >= self._due:
            self._due = now + _NEXT_NOTICE
            level = logging.ERROR if rank else logging.WARNING  # the terminal shows only errors of ranks above 0
            waits = "waits" if rank else "rank 0 waits"  # the log names the others itself
            logger.log(level, "%s %s; %s", waits, subject(), self._alone)


def _listen(info: RankInfo) -> socket.socket:
    """A listening socket at rank 0's port, on all addresses of the machine as torch's own."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", info.port), family=family, backlog=info.world_size, dualstack_ipv6=both)
    except OSError as error:
        reason = "is taken by another program" if error.errno == errno.EADDRINUSE else f"is refused ({error.strerror})"
        raise NotStarted(f"port {info.port} of {info.address} {reason}: {_OTHER_PORT}", BAD_INPUT) from None


def _receive_others(info: RankInfo, listener: socket.socket, wait: _Wait) -> None:
    """Waits until every other rank has reported, and lets them go on."""
    arrived: dict[int, socket.socket] = {}
    received: dict[socket.socket, bytes] = {}  # of each connection

    def missing() -> str:
        ranks = [rank for rank in range(1, info.world_size) if rank not in arrived]
        return f"at {info.address}:{info.port} for {named(ranks)} of {info.world_size} ranks"

    with selectors.DefaultSelector() as selector:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        try:
            while len(arrived) < info.world_size - 1:
                for key, _ in selector.select(_SLICE):
                    if key.fileobj is listener:
                        connection, _ = listener.accept()
                        connection.setblocking(False)
                        received[connection] = b""
                        selector.register(connection, selectors.EVENT_READ)
                        continue
                    connection = key.fileobj  # type: ignore[assignment]
                    if not _read_report(info, connection, received, arrived):
                        selector.unregister(connection)
                        connection.close()
                wait.check(missing)
            for rank, connection in arrived.items():
                try:
                    connection.sendall(_GO)
                except OSError:
                    raise NotStarted(f"rank {rank} ended before all ranks were there", FAILED) from None
        finally:
            for connection in received:
                connection.close()


def _read_report(
    info: RankInfo, connection: socket.socket, received: dict[socket.socket, bytes], arrived: dict[int, socket.socket]
) -> bool:
    """Reads from a connection to rank 0; returns whether it stays open."""
    try:
        part = connection.recv(_LONGEST)
    except OSError:
        part = b""
    if not part:  # a rank that ended is missing again
        for rank in [rank for rank, other in arrived.items() if other is connection]:
            del arrived[rank]
        return False
    received[connection] += part
    if not received[connection].endswith(b"\n") and len(received[connection]) < _LONGEST:
        return True
    for rank in range(1, info.world_size):
        if received[connection] == _report_of(rank, info.world_size) and rank not in arrived:
            arrived[rank] = connection
            with contextlib.suppress(OSError):  # that it ended is noticed at the next read
                connection.sendall(_WELCOME)
            return True
    return False  # a rank of another job, or another program


def _report_of(rank: int, world_size: int) -> bytes:
    return f"dist_imsr rank {rank} of {world_size}\n".encode()


def _report_to_rank_0(info: RankInfo, wait: _Wait, timeout_seconds: float) -> None:
    """Reports to rank 0, and waits until all ranks have."""
    first_answer = None
    while True:
        with _dial(info, wait) as connection:
            first_answer = first_answer or time.monotonic()
            if _answers(connection, _report_of(info.rank, info.world_size)):
                _wait_for_go(connection, timeout_seconds)
                return
        # The port of a job that is just ending may still answer.
        if time.monotonic() - first_answer > _FOREIGN:
            raise NotStarted(
                f"what answers at {info.address}:{info.port} is not rank 0 of these {info.world_size} ranks, but "
                f"another program or another job: {_OTHER_PORT}",
                BAD_INPUT,
            )
        time.sleep(_RETRY)


def _dial(info: RankInfo, wait: _Wait) -> socket.socket:
    """A connection to the address of rank 0, as soon as something listens there."""
    while True:
        try:
            return socket.create_connection((info.address, info.port), timeout=_FIRST_NOTICE)
        except OSError as error:
            reason = error.strerror or str(error)
        wait.check(lambda reason=reason: f"for rank 0 at {info.address}:{info.port} ({reason})")  # type: ignore[misc]
        time.sleep(_RETRY)


def _answers(connection: socket.socket, report: bytes) -> bool:
    """Whether rank 0 welcomes this rank; any other answer, or none for some seconds, is that of another program."""
    try:
        connection.settimeout(_FOREIGN)
        connection.sendall(report)
        return connection.recv(len(_WELCOME)) == _WELCOME
    except OSError:
        return False


def _wait_for_go(connection: socket.socket, timeout_seconds: float) -> None:
    """Waits for the ranks that have not reported yet; rank 0 logs which, and ends the wait in time."""
    try:
        connection.settimeout(timeout_seconds + _FOREIGN)
        answer = connection.recv(len(_GO))
    except OSError:
        answer = b""
    if answer != _GO:
        raise NotStarted("rank 0 ended while it waited for all ranks; its message says why", FAILED)


def named(ranks: list[int]) -> str:
    """Names ranks in few words.

    Args:
        ranks: at least one, ascending.

    Returns:
        For example ``"rank 3"`` or ``"ranks 1-7, 9"``.
    """
    breaks = [0, *(place for place, (one, two) in enumerate(pairwise(ranks), 1) if two != one + 1), len(ranks)]
    runs = [(ranks[first], ranks[end - 1]) for first, end in pairwise(breaks)]
    listed = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)
    return f"rank{'s' * (len(ranks) > 1)} {listed}"
