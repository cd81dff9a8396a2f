"""Kills a function at each write, rename and removal of files, in forked processes."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_EVENTS = {"os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir"}
_KILLED = 57


def killed_at(point: int, folder: Path, function: Callable[..., Any], *args: Any) -> bool:
    """Runs a function in a forked process, which ends without any cleanup before one of its steps in a folder.

    A step is that a file is opened for writing, or for reading if it is new, since what C++ writes cannot be seen
    before its checksum is read; that it is linked, renamed or removed; or that a folder is made or removed.

    Args:
        point: the number of the step, from 0.
        folder: of the files.
        function: the function.
        args: its arguments.

    Returns:
        Whether the function was killed; otherwise it has returned.
    """
    child = os.fork()
    if not child:
        try:
            _run(point, str(folder), function, args)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, _KILLED)
    return os.waitstatus_to_exitcode(status) == _KILLED


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, but for locks, by their path in it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _run(point: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    passed, old = 0, {str(path) for path in Path(folder).rglob("*")}

    def hook(event: str, values: tuple[Any, ...]) -> None:
        nonlocal passed
        path = str(values[0]) if values else ""
        inside = path.startswith(folder) and not path.endswith(".lock")
        in_open_folder = event in ("os.remove", "os.rmdir") and values[1] != -1  # of shutil.rmtree
        written = event == "open" and (path not in old or values[2] & (os.O_WRONLY | os.O_RDWR))
        if in_open_folder or (inside and (written or event in _EVENTS)):
            if passed == point:
                os._exit(_KILLED)
            passed += 1

    sys.addaudithook(hook)
    function(*args)
    os._exit(0)
