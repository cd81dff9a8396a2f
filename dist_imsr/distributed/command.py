"""How a distributed command ends: its exit status, and one line on stderr with what to do."""

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


class Stopped(Exception):
    """All ranks agreed to stop before the end.

    Args:
        message: for the user.
        status: the exit status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Refusal(ValueError):
    """Bad input that all ranks detect together after they are connected."""


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
    logs.start(rank_info().rank)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up after SIGTERM as after Ctrl-C

    def end(message: str, status: int, together: bool) -> int:
        together = together or rank_info().world_size == 1
        if rank_info().rank == 0 or not together:
            prefix = "" if together else f"rank {rank_info().rank}: "
            print(f"{name}: {prefix}{message}", file=sys.stderr, flush=True)
        logger.debug("ends with status %d: %s", status, message)
        return status

    def leave() -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    try:
        work()
        leave()
        return 0
    except Stopped as stop:
        status = end(str(stop), stop.status, together=True)
        leave()
        return status
    except FloatingPointError as error:
        return end(str(error), FAILED, together=True)
    except ValueError as error:
        status = end(str(error), BAD_INPUT, together=isinstance(error, Refusal) or not dist.is_initialized())
        leave()
        return status
    except OSError as error:
        return end(str(error), FAILED, together=not dist.is_initialized())
    except KeyboardInterrupt:
        return end(interrupted, INTERRUPTED, together=True)
    except Exception as error:
        if dist.is_initialized() and isinstance(error, RuntimeError):
            if any(text in str(error) for text in _CONNECTION_LOST):
                return end("another rank ended; its message says why", FAILED, together=False)
            if any(text in str(error) for text in _TIMED_OUT):
                return end(
                    "another rank did not answer within timeout_seconds: check whether it hangs", FAILED, together=False
                )
        # Logged here instead of raised: the traceback keeps prefetching threads alive, which would abort the process if
        # they lasted until Python exits.
        logger.error("%s failed\n%s", name, traceback.format_exc().rstrip())
        return FAILED
    finally:
        # Process groups in a reference cycle would outlive Python and abort the process.
        gc.collect()
