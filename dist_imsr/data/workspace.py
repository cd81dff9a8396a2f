"""Helpers for preparation: a folder that appears only when complete, DuckDB in a scratch folder, a progress display."""

import concurrent.futures
import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from os import getpid
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import duckdb
import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dist_imsr.data.sql import quoted

Result = TypeVar("Result")

_POLL_SECONDS = 0.2
_PLAIN_SECONDS = 30.0  # between two lines of a phase if there is no terminal
_BATCH_ROWS = 122_880  # a row group of DuckDB, which streams whole ones


@contextlib.contextmanager
def replace_folder(output: Path, marker: str, overwrite: bool) -> Iterator[Path]:
    """Creates a folder atomically: it appears at ``output`` if the block succeeds, and is removed if it raises.

    Args:
        output: the folder.
        marker: a folder without this file is never overwritten.
        overwrite: whether to replace an existing folder.

    Yields:
        The folder to fill, a hidden sibling of ``output``.

    Raises:
        ValueError: if ``output`` exists and may not be replaced, or cannot be written.
    """
    target = output.resolve()
    _refuse_existing(output, marker, overwrite)
    missing = [parent for parent in target.parents if not parent.exists()]
    partial, old = (target.with_name(f".{target.name}.{kind}-{getpid()}") for kind in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"output: {output} cannot be written: {error}") from error
    try:
        yield partial
        if target.exists():
            _refuse_existing(output, marker, overwrite)
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(partial, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _refuse_existing(output: Path, marker: str, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite:
        raise ValueError(f"output: {output} exists; choose another or replace it with --overwrite true")
    if not output.is_dir() or (any(output.iterdir()) and not (output / marker).is_file()):
        raise ValueError(f"output: {output} is no prepared data set (it has no {marker}): it is not overwritten")


class ProgressDisplay:
    """Shows the progress of phases with the time left: a bar for each phase in a terminal, lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        done, left = (TaskProgressColumn(), TimeElapsedColumn()), (TimeRemainingColumn(), TextColumn("left"))
        columns = (TextColumn("{task.description:<8}"), BarColumn(), *done, *left)
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def phase(self, name: str, optional: bool = False) -> Iterator[Callable[[float], None]]:
        """Shows one phase, e.g. ``"read"``.

        Args:
            name: of the phase.
            optional: shows it only once the yielded function is called.

        Yields:
            A function to call with the fraction that is done, 0 to 1.
        """
        begin = printed = time.perf_counter()
        bar = None if optional else self._bars.add_task(name, total=1.0)

        def progress(done: float) -> None:
            nonlocal printed, bar
            bar = self._bars.add_task(name, total=1.0) if bar is None else bar
            self._bars.update(bar, completed=done)
            now = time.perf_counter()
            if done > 0 and now - printed > _PLAIN_SECONDS:
                printed, left = now, (1 - done) / done * (now - begin)
                self._print(f"{name}: {done:.0%}, {now - begin:.0f} s, {left:.0f} s left")

        yield progress
        if bar is None:
            return
        self._bars.update(bar, completed=1.0)
        self._print(f"{name}: {time.perf_counter() - begin:.1f} s")

    def _print(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line, highlight=False)


class Database:
    """A DuckDB database in a temporary folder, which is deleted with it.

    Queries run in a thread, so that the caller's thread can show their progress and stop them on Ctrl-C.

    Args:
        parent: of the temporary folder.
        memory_limit: of DuckDB in bytes; it spills the rest to the folder.
        threads: the number of DuckDB's threads.
        time_zone: of dates that name none.

    Raises:
        ValueError: if the parent cannot be written.
    """

    def __init__(self, parent: Path, memory_limit: int, threads: int, time_zone: str = "UTC") -> None:
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="duckdb-", dir=parent))
        except OSError as error:
            raise ValueError(f"temp_dir: {parent} cannot be written: {error}") from error
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="duckdb")
        try:
            self.connection = duckdb.connect(
                str(self._folder / "prepare.duckdb"),
                config={
                    "memory_limit": f"{memory_limit // 2**20}MiB",
                    "threads": threads,
                    "temp_directory": str(self._folder / "spill"),
                    "autoinstall_known_extensions": False,
                    "autoload_known_extensions": False,
                },
            )
            self.connection.execute(f"SET TimeZone = {quoted(time_zone)}")
            with contextlib.suppress(duckdb.InvalidInputException):  # a notebook without widgets: no time left is shown
                self.connection.execute("SET enable_progress_bar = true")
                self.connection.execute("SET enable_progress_bar_print = false")
        except BaseException:  # Ctrl-C while the database opens
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        self.connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for temporary files, which is deleted at the end of the block."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            yield Path(folder)

    def set_memory_limit(self, limit: int) -> None:
        """Changes DuckDB's memory limit, in bytes."""
        self.connection.execute(f"SET memory_limit = '{limit // 2**20}MiB'")

    def run(self, sql: str, progress: Callable[[float], None] | None = None) -> list[tuple[Any, ...]]:
        """Executes a statement.

        Args:
            sql: the statement.
            progress: called with the fraction that is done.

        Returns:
            All rows of the result, which must be small.
        """
        return self._wait(lambda: self.connection.execute(sql).fetchall(), progress)

    def table(self, sql: str) -> pa.Table:
        """Executes a query with a small result."""
        return self._wait(lambda: self.connection.sql(sql).to_arrow_table())

    def stream(
        self, sql: str, progress: Callable[[float], None] | None = None
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """Executes a query whose result may exceed memory; returns when the first batch is ready.

        Args:
            sql: the query.
            progress: called with the fraction that is done, until the first batch is ready.

        Returns:
            The result's columns, and its record batches in the query's order.
        """
        reader = self._wait(lambda: self.connection.sql(sql).to_arrow_reader(_BATCH_ROWS), progress)

        def read() -> pa.RecordBatch | None:
            return next(reader, None)

        def batches(batch: pa.RecordBatch | None) -> Iterator[pa.RecordBatch]:
            while batch is not None:
                following = self._thread.submit(read)  # DuckDB merges while the caller works
                yield batch
                batch = self._wait(following)

        return reader.schema, batches(self._wait(read, progress))

    def _wait(
        self,
        work: Callable[[], Result] | concurrent.futures.Future[Result],
        progress: Callable[[float], None] | None = None,
    ) -> Result:
        future = self._thread.submit(work) if callable(work) else work
        try:
            while not concurrent.futures.wait([future], timeout=_POLL_SECONDS).done:
                if progress is not None:
                    progress(max(self.connection.query_progress(), 0.0) / 100)
        except BaseException:
            self.connection.interrupt()
            concurrent.futures.wait([future])
            raise
        return future.result()
