"""How a distributed command ends: its exit status, and one line on stderr that says what to do."""

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
REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on when it is started again
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exiting prematurely",
)  # what gloo says of a rank that is gone, and NCCL
_SILENT = (
    "Timed out waiting",
    "Application timeout caused pair closure",
)  # what gloo says of a rank that does not answer, and of all else that was asked of it meanwhile


class Stopped(Exception):
    """All ranks agreed to stop before the end.

    Args:
        message: what is told.
        status: the exit status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Refusal(ValueError):
    """Bad input that all ranks meet at the same time once they are connected."""


def run(name: str, work: Callable[[], None], interrupted: str) -> int:
    """Does a command's work on every rank.

    Args:
        name: of the command.
        work: refuses bad input before it connects, where all ranks meet the same refusal and rank 0 speaks for them.
        interrupted: what is told after Ctrl-C or SIGTERM.

    Returns:
        The exit status: 0, or 2 for refused inputs, 1 for numbers that are not finite and for what the machine refuses,
        130 after Ctrl-C or SIGTERM; what `Stopped` carries.
    """
    # The collector would go again and again through all that torch and TorchRec have brought, for a second at the end.
    gc.freeze()
    logs.start(rank_info().rank)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is ended cleans up as well

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
            if any(sign in str(error) for sign in _LOST):
                return end("another rank ended; its message says why", FAILED, together=False)
            if any(sign in str(error) for sign in _SILENT):
                return end(
                    "another rank said nothing for timeout_seconds: see whether it hangs", FAILED, together=False
                )
        # Told here and not by Python: what the traceback holds must be gone before the process is, threads among it
        # that read batches ahead and would abort it.
        logger.error("%s failed\n%s", name, traceback.format_exc().rstrip())
        return FAILED
    finally:
        # Process groups that only a cycle of references keeps would outlive Python, and abort the process.
        gc.collect()
