"""Where tables are printed."""

from rich.console import Console

_PLAIN_WIDTH = 160  # a file has no edge to wrap at


def output_console() -> Console:
    """Standard output, wide enough for the tables where it is no terminal.

    Returns:
        The console.
    """
    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)
