"""Where a command's log goes: the terminal tells what rank 0 says, and each rank of a run keeps all in its own file."""

import contextlib
import logging
import logging.handlers
import sys
from pathlib import Path

FOLDER = "logs"
_FORMAT = "%(asctime)s rank %(rank)d span %(span)s step %(step)s %(levelname)s %(name)s: %(message)s"
_EARLY = 1000  # records that wait for the file at most

_place: dict[str, int | str] = {"rank": 0, "span": "-", "step": "-"}
_early: logging.handlers.BufferingHandler | None = None


def start(rank: int) -> None:
    """Sends what is logged, and what Python warns of, to the terminal; a file may follow.

    The terminal gets this project's words and the libraries' warnings from rank 0, each warning once, and errors from
    every rank.

    Args:
        rank: this process's.
    """
    global _early
    _place.update(rank=rank, span="-", step="-")
    terminal = logging.StreamHandler()
    terminal.setLevel("ERROR" if rank else "INFO")
    terminal.setFormatter(logging.Formatter(f"%(asctime)s {f'rank {rank}: ' if rank else ''}%(message)s", "%H:%M:%S"))
    terminal.addFilter(_Once())
    _early = logging.handlers.BufferingHandler(_EARLY)
    logging.basicConfig(level="WARNING", handlers=[terminal, _early], force=True)
    logging.getLogger("dist_imsr").setLevel("DEBUG")
    logging.captureWarnings(True)


def keep(run_dir: Path) -> None:
    """Writes everything from now on to this rank's file as well, and first what was logged since `start`.

    Args:
        run_dir: the run's folder; the file of an earlier process of the run is gone on with.

    Raises:
        OSError: if the file cannot be written.
    """
    global _early
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    file = _RankFile(folder / f"rank={_place['rank']:04d}.log", encoding="utf-8")
    file.addFilter(_placed)
    file.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    root.addHandler(file)
    if _early is not None:
        root.removeHandler(_early)
        for record in _early.buffer:
            file.handle(record)
        _early = None


def at(span: int, step: int) -> None:
    """Notes where the run stands, for the lines of the file.

    Args:
        span: the span at hand.
        step: updates since the run began.
    """
    _place.update(span=span, step=step)


def _placed(record: logging.LogRecord) -> bool:
    vars(record).update(_place)
    return True


class _Once(logging.Filter):
    """Lets a library's warning pass once."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("dist_imsr"):
            return True
        told = record.name, record.getMessage()
        first = told not in self._told
        self._told.add(told)
        return first


class _RankFile(logging.FileHandler):
    """A file whose disk may fail: then the log ends, and the run goes on."""

    def handleError(self, record: logging.LogRecord) -> None:
        self.addFilter(lambda _: False)
        with contextlib.suppress(OSError):
            self.close()
        logging.getLogger(__name__).error("%s ends here: %s", self.baseFilename, sys.exc_info()[1])
