"""Kills a change of a folder before each of its writes, renames and removals, and counts them."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate")
_KILLED = 99


def killed_at(point: int, folder: Path, work: Callable[[], Any]) -> bool:
    """Runs a change in a child process that dies, as by SIGKILL, at one of its points.

    Call it from a process that has no threads and has not used DuckDB yet.

    Args:
        point: the number of the write, rename or removal in the folder before which the child dies, from 0.
        folder: only what happens in it counts.
        work: the change.

    Returns:
        Whether the child died; false if it ended before.

    Raises:
        RuntimeError: if the change failed.
    """
    child = os.fork()
    if child == 0:
        _Killer(point, folder.resolve())
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, _KILLED):
        raise RuntimeError(f"the change failed before point {point}")
    return status == _KILLED


class _Killer:
    """Counts events of Python's own files, and of Arrow's, which Python cannot see."""

    def __init__(self, point: int, folder: Path) -> None:
        self.left, self.folder = point, str(folder)
        sys.addaudithook(self._audit)
        for module, name in ((pa, "OSFile"), (pq, "ParquetWriter"), (pq, "write_table")):
            setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self._count(arguments)
            return function(*arguments, **options)

        return counted

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        reads = event == "open" and (not isinstance(arguments[1], str) or set(arguments[1]) <= set("rbt"))
        if event in _EVENTS and not reads:
            self._count(arguments)

    def _count(self, arguments: tuple[Any, ...]) -> None:
        if any(self._inside(one) for one in arguments):
            if self.left == 0:
                os._exit(_KILLED)
            self.left -= 1

    def _inside(self, path: object) -> bool:
        return isinstance(path, str | Path) and str(path).startswith(self.folder) and "duckdb-" not in str(path)
