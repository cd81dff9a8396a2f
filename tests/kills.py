"""Kills a function at each file that it opens, makes, renames or removes, in processes of its own."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_imsr.processes import new_process

_EVENTS = {"open", "os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir"}
_KILLED = 57


def killed_at(point: int, folder: Path, function: Callable[..., Any], *args: Any) -> bool:
    """Runs a module's function in a new process, which ends without any cleanup at one of its events in a folder.

    Files that C++ writes have no event of their own, but are opened for their checksums right after.

    Args:
        point: the number of the event, from 0.
        folder: of the files.
        function: the function.
        args: its arguments, which must be picklable.

    Returns:
        Whether the function was killed; otherwise it has returned.
    """
    process = new_process(_counted, (point, str(folder), function, args), cuda=False)
    process.start()
    process.join()
    assert process.exitcode in (0, _KILLED)
    return process.exitcode == _KILLED


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, but for locks, by their path in it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _counted(point: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    passed = 0

    def hook(event: str, values: tuple[Any, ...]) -> None:
        nonlocal passed
        if event in _EVENTS and str(values[0]).startswith(folder):
            if passed == point:
                os._exit(_KILLED)
            passed += 1

    sys.addaudithook(hook)
    function(*args)
