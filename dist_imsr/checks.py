"""Refuses impossible values by the names of their keys; imports nothing of the project."""

import os
from pathlib import Path


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Refuses an impossible value with the name of its key.

    Args:
        condition: whether the value is possible.
        key: the key as a user writes it, e.g. ``"model.dim"``.
        value: the value as read.
        expected: what would be accepted, e.g. ``"at least 1"``.

    Raises:
        ValueError: if ``condition`` does not hold.
    """
    if not condition:
        raise ValueError(f"{key}: {value!r} is impossible here; expected {expected}")


def require_file(path: Path | None, key: str) -> None:
    """Refuses a file to be written that could not be.

    Args:
        path: the file, or None for none.
        key: as a user writes it.

    Raises:
        ValueError: naming the key, if there is no such folder to write it into, or what stands in its place is no file.
    """
    if path is not None:
        replaced = path.is_file() or not path.exists()  # whole: a device or a pipe would be gone
        able = replaced and path.parent.is_dir() and os.access(path.parent, os.W_OK)
        require(able, key, str(path), "a file in a folder that exists and can be written")


def require_folder(path: Path, key: str) -> None:
    """Refuses a folder in which nothing could be written.

    Args:
        path: the folder.
        key: as a user writes it.

    Raises:
        ValueError: naming the key, if it is no folder, or cannot be written.
    """
    able = path.is_dir() and os.access(path, os.W_OK)
    require(able, key, str(path), "a folder that exists and can be written")
