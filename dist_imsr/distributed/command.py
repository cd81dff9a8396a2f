"""The end of a distributed command: its exit status, and one line on stderr with what to do."""

import gc
import logging
import signal
import sys
import traceback
from collections.abc import Callable

import torch.distributed as dist

from dist_imsr import logs
from dist_imsr.launcher import rank_info

logger = logging.getLogger(__name__)

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes when it is started again
_CONNECTION_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exiting prematurely",
)  # errors of gloo and NCCL after another rank has ended
_TIMED_OUT = (
    "Timed out waiting",
    "Application timeout caused pair closure",
)  # errors of gloo for the collective that timed out, and for others that were pending with the same rank


class _Ended(Exception):
    """The command ends early.

    Args:
        message: for the user.
        status: the exit status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Stopped(_Ended):
    """All ranks agreed to stop before the end."""


class NotStarted(_Ended):
    """This rank could not join the others."""


class Refusal(ValueError):
    """Bad input that all ranks detect after they are connected."""


def run(name: str, work: Callable[[], None], interrupted: str) -> int:
    """Runs a command on every rank.

    Args:
        name: of the command.
        work: the command; its errors before it connects are the same on all ranks, and rank 0 alone prints them.
        interrupted: the message after Ctrl-C or SIGTERM.

    Returns:
        The exit status: 0 for success, 2 for bad input, 1 for numbers that are not finite and errors of the machine,
        130 after Ctrl-C or SIGTERM, or the status of `Stopped`.
    """
    # Objects that torch and TorchRec created at import need no collection; traversing them costs a second at the end.
    gc.freeze()
    try:
        logs.start(rank_info().rank)
    except ValueError as error:  # variables that make no rank
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return BAD_INPUT
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up after SIGTERM as after Ctrl-C
    try:
        work()
        _disconnect()
        return 0
    except Stopped as stop:
        status = _report(name, str(stop), stop.status)
        _disconnect()
        return status
    except NotStarted as error:
        return _report(name, str(error), error.status, on_all_ranks=False)
    except FloatingPointError as error:
        return _report(name, str(error), FAILED)
    except ValueError as error:
        on_all_ranks = isinstance(error, Refusal) or not dist.is_initialized() or rank_info().world_size == 1
        status = _report(name, str(error), BAD_INPUT, on_all_ranks)
        if on_all_ranks:  # NCCL would wait for what the other ranks do
            _disconnect()
        return status
    except ConnectionError as error:  # to a server of remote data, which other ranks may reach
        return _report(name, str(error), FAILED, on_all_ranks=False)
    except OSError as error:
        return _report(name, str(error), FAILED, on_all_ranks=not dist.is_initialized())
    except KeyboardInterrupt:
        return _report(name, interrupted, INTERRUPTED)
    except Exception as error:
        message = _fault_of_another_rank(error)
        if message is not None:
            return _report(name, message, FAILED, on_all_ranks=False)
        # Logged here instead of raised: the traceback keeps prefetching threads alive, which would abort the process if
        # they lasted until Python exits.
        logger.error("%s failed\n%s", name, traceback.format_exc().rstrip())
        return FAILED
    finally:
        if "duckdb" in sys.modules:  # else it reports all of its types as leaks, which hides the result
            gc.unfreeze()
        # Process groups in a reference cycle would outlive Python and abort the process.
        gc.collect()


def _report(name: str, message: str, status: int, on_all_ranks: bool = True) -> int:
    """Prints why a command ends, on rank 0 alone if all ranks end for the same reason; returns the status."""
    on_all_ranks = on_all_ranks or rank_info().world_size == 1
    if rank_info().rank == 0 or not on_all_ranks:
        prefix = "" if on_all_ranks else f"rank {rank_info().rank}: "
        print(f"{name}: {prefix}{message}", file=sys.stderr, flush=True)
    logger.debug("ends with status %d: %s", status, message)
    return status


def _fault_of_another_rank(error: Exception) -> str | None:
    """The message for an error that another rank caused; None for this rank's own errors."""
    if dist.is_initialized() and isinstance(error, RuntimeError):
        if any(text in str(error) for text in _CONNECTION_LOST):
            return "another rank ended; its message says why"
        if any(text in str(error) for text in _TIMED_OUT):
            return "another rank did not answer in time (timeout_seconds, step_timeout_seconds): check whether it hangs"
    return None


def _disconnect() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
