"""Checks of configuration values, whose errors name the key; imports nothing of the project."""

import os
import re
from pathlib import Path

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Refuses an impossible value with the name of its key.

    Args:
        condition: whether the value is possible.
        key: the key as a user writes it, e.g. ``"model.dim"``.
        value: the value as read.
        expected: the accepted values, e.g. ``"at least 1"``.

    Raises:
        ValueError: if ``condition`` is false.
    """
    if not condition:
        raise ValueError(f"{key}: {value!r} is impossible here; expected {expected}")


def require_file(path: Path | None, key: str) -> None:
    """Refuses the path of an output file that cannot be written.

    Args:
        path: the file, or None for none.
        key: as a user writes it.

    Raises:
        ValueError: naming the key, if its folder does not exist or cannot be written, or the path is not a file.
    """
    if path is not None:
        replaceable = path.is_file() or not path.exists()  # a rename would remove a device or a pipe
        able = replaceable and path.parent.is_dir() and os.access(path.parent, os.W_OK)
        require(able, key, str(path), "a file in a folder that exists and can be written")


def require_folder(path: Path, key: str) -> None:
    """Refuses an output folder that cannot be written.

    Args:
        path: the folder.
        key: as a user writes it.

    Raises:
        ValueError: naming the key, if it is not a folder, or cannot be written.
    """
    able = path.is_dir() and os.access(path, os.W_OK)
    require(able, key, str(path), "a folder that exists and can be written")


def parse_bytes(text: str) -> int | None:
    """Parses a size such as ``4GiB``, ``4GB`` or ``500 MB`` into bytes.

    Units with an i are binary, others decimal.

    Returns:
        Bytes; None if the text is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        return None
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _UNITS[unit.upper()])
