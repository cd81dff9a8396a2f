"""Logging of a command: rank 0 logs to the terminal, and each rank of a run logs everything to a file of its own."""

import contextlib
import logging
import logging.handlers
import sys
from pathlib import Path

FOLDER = "logs"
_FORMAT = "%(asctime)s rank %(rank)d span %(span)s step %(step)s %(levelname)s %(name)s: %(message)s"
_EARLY = 1000  # at most so many records are buffered before the file is open

_position: dict[str, int | str] = {"rank": 0, "span": "-", "step": "-"}
_early: logging.handlers.BufferingHandler | None = None


def start(rank: int) -> None:
    """Sends log records and Python's warnings to the terminal, and buffers them for a file that `keep` may open.

    The terminal shows this package's messages and the libraries' warnings from rank 0 (each warning once), and errors
    from every rank.
    """
    global _early
    _position.update(rank=rank, span="-", step="-")
    terminal = logging.StreamHandler()
    terminal.setLevel("ERROR" if rank else "INFO")
    terminal.setFormatter(logging.Formatter(f"%(asctime)s {f'rank {rank}: ' if rank else ''}%(message)s", "%H:%M:%S"))
    terminal.addFilter(_Once())
    _early = logging.handlers.BufferingHandler(_EARLY)
    logging.basicConfig(level="WARNING", handlers=[terminal, _early], force=True)
    logging.getLogger("dist_imsr").setLevel("DEBUG")
    logging.captureWarnings(True)


def keep(run_dir: Path) -> None:
    """Writes all records to this rank's file as well, those since `start` first.

    Args:
        run_dir: the run's folder; the file of an earlier process of the run is appended to.

    Raises:
        OSError: if the file cannot be written.
    """
    global _early
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    file = _RankFile(folder / f"rank={_position['rank']:04d}.log", encoding="utf-8")
    file.addFilter(_add_position)
    file.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    root.addHandler(file)
    if _early is not None:
        root.removeHandler(_early)
        for record in _early.buffer:
            file.handle(record)
        _early = None


def at(span: int, step: int) -> None:
    """Sets the position in the run that the lines of the file show.

    Args:
        span: the current span.
        step: updates since the run began.
    """
    _position.update(span=span, step=step)


def _add_position(record: logging.LogRecord) -> bool:
    vars(record).update(_position)
    return True


class _Once(logging.Filter):
    """Drops repetitions of a library's warning."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("dist_imsr"):
            return True
        warning = record.name, record.getMessage()
        first = warning not in self._seen
        self._seen.add(warning)
        return first


class _RankFile(logging.FileHandler):
    """A log file that is closed when its disk fails, so that the run continues without it."""

    def handleError(self, record: logging.LogRecord) -> None:
        self.addFilter(lambda _: False)
        with contextlib.suppress(OSError):
            self.close()
        logging.getLogger(__name__).error("%s ends here: %s", self.baseFilename, sys.exc_info()[1])
