"""Where heavy preparation happens: a folder that appears only when complete, DuckDB in a scratch folder, progress."""

import concurrent.futures
import contextlib
import re
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

Answer = TypeVar("Answer")

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_POLL_SECONDS = 0.2
_PLAIN_SECONDS = 30.0  # between two lines of one phase where there is no terminal
_BATCH_ROWS = 122_880  # DuckDB's row group; what it streams comes in whole ones


def size_in_bytes(text: str) -> int | None:
    """Reads a size such as ``4GiB``, ``4GB`` or ``500 MB``.

    Args:
        text: a number and a unit, binary with an i and decimal without.

    Returns:
        Bytes; None where the text is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        return None
    number, unit, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** _UNITS[unit.upper()])


@contextlib.contextmanager
def replacing(output: Path, marker: str, overwrite: bool) -> Iterator[Path]:
    """A folder to fill that takes its place only when the block ends well; else nothing of it stays.

    Args:
        output: where the folder is to stand.
        marker: the file by which a folder is known as one that may be overwritten.
        overwrite: whether to replace one that stands there.

    Yields:
        A hidden sibling of ``output``.

    Raises:
        ValueError: if ``output`` stands there and may not be replaced, or cannot be written.
    """
    place = output.resolve()
    _refuse_existing(output, marker, overwrite)
    missing = [parent for parent in place.parents if not parent.exists()]
    partial, old = (place.with_name(f".{place.name}.{kind}-{getpid()}") for kind in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"output: {output} cannot be written: {error}") from error
    try:
        yield partial
        if place.exists():
            _refuse_existing(output, marker, overwrite)
            place.rename(old)
        partial.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists() and not place.exists():
            old.rename(place)
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
        raise ValueError(f"output: {output} is no prepared data set (it holds no {marker}): it is not overwritten")


class Phases:
    """Tells what goes on and how long it will: a bar for each phase in a terminal, lines elsewhere.

    Args:
        console: where it is told.
    """

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
    def phase(self, name: str) -> Iterator[Callable[[float], None]]:
        """One phase.

        Args:
            name: e.g. ``"read"``.

        Yields:
            A function that takes the part that is done, 0 to 1.
        """
        begin = told = time.perf_counter()
        bar = self._bars.add_task(name, total=1.0)

        def progress(done: float) -> None:
            nonlocal told
            self._bars.update(bar, completed=done)
            now = time.perf_counter()
            if done > 0 and now - told > _PLAIN_SECONDS:
                told, left = now, (1 - done) / done * (now - begin)
                self._say(f"{name}: {done:.0%}, {now - begin:.0f} s, {left:.0f} s left")

        yield progress
        self._bars.update(bar, completed=1.0)
        self._say(f"{name}: {time.perf_counter() - begin:.1f} s")

    def _say(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(line, highlight=False)


class Database:
    """DuckDB on disk, in a folder of its own that goes with it.

    DuckDB works in a thread, so that the caller's one can tell its progress and hear Ctrl-C, which stops the query.

    Args:
        parent: where the folder is made.
        memory_limit: bytes that DuckDB may hold; beyond, it spills to the folder.
        threads: how many it uses.

    Raises:
        ValueError: if nothing can be written there.
    """

    def __init__(self, parent: Path, memory_limit: int, threads: int) -> None:
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="duckdb-", dir=parent))
        except OSError as error:
            raise ValueError(f"temp_dir: {parent} cannot be written: {error}") from error
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="duckdb")
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
        for setting in ("TimeZone = 'UTC'", "enable_progress_bar = true", "enable_progress_bar_print = false"):
            self.connection.execute(f"SET {setting}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        self.connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def limit(self, memory: int) -> None:
        """Gives it more or less memory from here on.

        Args:
            memory: bytes that DuckDB may hold.
        """
        self.connection.execute(f"SET memory_limit = '{memory // 2**20}MiB'")

    def run(self, sql: str, progress: Callable[[float], None] | None = None) -> list[tuple[Any, ...]]:
        """Executes a statement.

        Args:
            sql: the statement.
            progress: is told the part that is done.

        Returns:
            All rows of the answer: for small ones.
        """
        return self._wait(lambda: self.connection.execute(sql).fetchall(), progress)

    def table(self, sql: str) -> pa.Table:
        """Executes a query.

        Args:
            sql: the query.

        Returns:
            The whole answer: for small ones.
        """
        return self._wait(lambda: self.connection.sql(sql).to_arrow_table())

    def stream(self, sql: str, progress: Callable[[float], None] | None = None) -> Iterator[pa.RecordBatch]:
        """Executes a query whose answer may exceed memory.

        Args:
            sql: the query.
            progress: is told the part that is done before the first batch is there.

        Returns:
            Record batches in the query's order; the first one is there already.
        """
        reader = self._wait(lambda: self.connection.sql(sql).to_arrow_reader(_BATCH_ROWS), progress)

        def read() -> pa.RecordBatch | None:
            return next(reader, None)

        def batches(batch: pa.RecordBatch | None) -> Iterator[pa.RecordBatch]:
            while batch is not None:
                ahead = self._thread.submit(read)  # DuckDB merges while the caller works
                yield batch
                batch = self._wait(ahead)

        return batches(self._wait(read, progress))

    def _wait(
        self,
        work: Callable[[], Answer] | concurrent.futures.Future[Answer],
        progress: Callable[[float], None] | None = None,
    ) -> Answer:
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
