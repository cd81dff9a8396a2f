"""Checks of raw input files, before anything expensive starts."""

import gzip
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, cast

_HEAD_LINES = 100


def open_raw(path: Path) -> IO[bytes]:
    """Opens a raw file, decompressed if its name ends in ``.gz``."""
    return cast(IO[bytes], gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def require_input(path: Path | None, source: str) -> Path:
    """Refuses an input that is not a readable, non-empty file; returns it.

    Raises:
        ValueError: naming the file, if it is missing, empty or cannot be read.
    """
    if path is None:
        raise ValueError(f"input: --source {source} needs a file: --input FILE")
    if path.is_dir():
        raise ValueError(f"input: {path} is a folder; expected a file")
    if not path.is_file():
        raise ValueError(f"input: {path} does not exist")
    try:
        with open_raw(path) as file:
            empty = not file.read(1)
    except (OSError, EOFError) as error:
        raise ValueError(f"input: {path} cannot be read: {error}") from error
    if empty:
        raise ValueError(f"input: {path} is empty")
    return path


def require_format(path: Path, fits: Callable[[bytes], bool], expected: str) -> None:
    """Refuses a long file of another format by its first lines, instead of rejecting each line.

    Args:
        path: the file; a shorter one passes.
        fits: whether a line has the format.
        expected: the format, for the error.

    Raises:
        ValueError: if none of the first lines fits.
    """
    with open_raw(path) as file:
        lines = list(islice(file, _HEAD_LINES))
    if len(lines) == _HEAD_LINES and not any(map(fits, lines)):
        raise ValueError(f"input: none of the first {_HEAD_LINES} lines of {path} has the expected {expected}")


def require_column(name: str, key: str, names: Sequence[str], path: Path) -> None:
    """Refuses a configured column that the file does not have.

    Args:
        name: of the column.
        key: of the configuration.
        names: the file's columns.
        path: the file.

    Raises:
        ValueError: naming the key and the file's columns.
    """
    if name not in names:
        raise ValueError(f"{key}: {path} has no column {name!r}; its columns are {', '.join(names)}")
