"""Terminal output and exit statuses of commands that run in one process."""

import signal
import sys
from collections.abc import Callable

from rich.console import Console

_PLAIN_WIDTH = 160  # a file has no edge to wrap at


def output_console() -> Console:
    """Standard output; wide enough for the tables if it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)


def run_writer(
    name: str, work: Callable[[Console], None], when_stopped: Callable[[], str] = lambda: "nothing was written"
) -> int:
    """Runs a command that writes files whole or not at all; a failure is one line on standard error.

    Args:
        name: the command's, for the error line.
        work: takes the console for its progress.
        when_stopped: what there is after Ctrl-C or SIGTERM, for the error line.

    Returns:
        The exit status: 0; 2 for invalid input, 1 for a failure of the machine, 130 after Ctrl-C or SIGTERM.
    """
    stopped = False

    def interrupt(*_: object) -> None:
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)  # so that a terminated job cleans up as well
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a shell made this job ignore it
        signal.signal(signal.SIGINT, interrupt)
    try:
        work(Console(stderr=True))
        return 0
    except (KeyboardInterrupt, Exception) as error:
        # DuckDB may turn an interrupt while it fetches rows into an error of its own.
        if stopped or isinstance(error, KeyboardInterrupt):
            reason, status = f"stopped; {when_stopped()}", 130
        elif isinstance(error, ValueError | OSError):
            reason, status = str(error), 2 if isinstance(error, ValueError) else 1
        else:
            raise
    print(f"{name}: {_one_line(reason)}", file=sys.stderr)
    return status


def _one_line(text: str) -> str:
    """The text without line ends, and with control characters, such as those of a damaged file, as escapes."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in " ".join(text.split()))
