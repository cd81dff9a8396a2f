"""Where commands without ranks print, and how they end."""

import signal
import sys
from collections.abc import Callable

from rich.console import Console

_PLAIN_WIDTH = 160  # a file has no edge to wrap at


def output_console() -> Console:
    """Standard output, wide enough for the tables where it is no terminal.

    Returns:
        The console.
    """
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


def run_writer(name: str, work: Callable[[Console], None]) -> int:
    """Does the work of a command that writes all or nothing; where it fails, one line on standard error says why.

    Args:
        name: of the command.
        work: takes the console for its progress.

    Returns:
        The exit status: 0; 2 where input is refused, 1 where the machine fails, 130 after Ctrl-C or SIGTERM.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is ended cleans up as well
    try:
        work(Console(stderr=True))
        return 0
    except KeyboardInterrupt:
        reason, status = "stopped; nothing was written", 130
    except ValueError as error:
        reason, status = str(error), 2
    except OSError as error:
        reason, status = str(error), 1
    print(f"{name}: {reason}", file=sys.stderr)
    return status
