"""Files of a remote folder, through pyarrow's filesystems; connections that fail are tried again, then named."""

import contextlib
import fnmatch
import io
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

import pyarrow as pa

from dist_imsr.addresses import Address

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

PARALLEL = 8  # files at a time
WAITS = (1.0, 3.0, 9.0)  # seconds before each further attempt
_BLOCK = 1 << 23  # bytes of a request
_REFUSED = re.compile(
    r"AWS Error (ACCESS_DENIED|NO_SUCH_BUCKET|\w*(ACCESS_KEY|SIGNATURE|TOKEN)\w*) "
    r"|Bucket '.*' not found|Unable to load lib"
)
"""Errors that a further attempt would not mend: of S3, of a missing library of HDFS, of a bucket without region."""
_PATTERN = re.compile(r"[*\[]")


class Unreachable(ConnectionError):
    """A remote file could not be read or written, after all attempts."""


class RemoteFolder:
    """A folder, whose files are named by their paths in it.

    Methods raise `Unreachable` when all attempts fail, and ValueError if the service refuses (no such bucket, no
    permission) or pyarrow lacks what the scheme needs; both name the address.

    Args:
        address: of the folder.
    """

    def __init__(self, address: Address) -> None:
        self.address = address

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        from pyarrow import fs  # takes a while, and only remote places need it

        # This may ask the service where the bucket is.
        filesystem, root = self.retried("", "opened", lambda: fs.FileSystem.from_uri(str(self.address)))
        return filesystem, root.rstrip("/")

    def read(self, name: str) -> bytes:
        """The bytes of a small file.

        Raises:
            FileNotFoundError: if it is not there.
        """
        return b"".join(self.blocks(name))

    def blocks(self, name: str = "") -> Iterator[bytes]:
        """The bytes of a file in pieces, by default of that at the folder's own address.

        Raises:
            FileNotFoundError: if it is not there.
        """
        with self.open(name) as file:
            while block := file.read(_BLOCK):
                yield block

    def open(self, name: str = "") -> BinaryIO:
        """Opens a file for reading, by default that at the folder's own address.

        After an error of the connection, it goes on where it was.

        Raises:
            FileNotFoundError: when it is read, if it is not there.
        """
        return io.BufferedReader(_RemoteFile(self, name), _BLOCK)

    def open_stream(self, name: str) -> Any:
        """Opens a file as pyarrow does, without a further attempt."""
        return self._opened[0].open_input_file(self._path(name))

    def sizes(self, under: str = "") -> dict[str, int]:
        """The number of bytes of each file in the folder, or in one inside of it; none if there is no such folder."""
        from pyarrow import fs

        root = self._path(under)
        selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
        found = self.retried(under, "listed", lambda: self._opened[0].get_file_info(selector))
        start = len(self._opened[1]) + 1
        return {info.path[start:]: info.size for info in found if info.type == fs.FileType.File}

    def is_file(self, name: str = "") -> bool:
        """Whether there is such a file; the folder's own address by default."""
        from pyarrow import fs

        info = self.retried(name, "found", lambda: self._opened[0].get_file_info(self._path(name)))
        return bool(info.type == fs.FileType.File)

    def write(self, name: str, data: bytes) -> None:
        """Writes or replaces a small file, so that readers find the old or the new one, but no part of it."""
        filesystem, path = self._opened[0], self._path(name)
        renames = filesystem.type_name == "hdfs"  # where a file is visible before it is whole
        partial = f"{path}.partial" if renames else path

        def put() -> None:
            self._copy(io.BytesIO(data), partial)
            if renames:
                filesystem.move(partial, path)

        self.retried(name, "written", put)

    def upload(self, folder: Path, names: Iterable[str]) -> None:
        """Copies files of a local folder, several at a time."""
        self._each(lambda name: self.upload_file(folder / name, name), names)

    def upload_file(self, source: Path, name: str) -> None:
        """Copies a local file."""

        def put() -> None:
            with source.open("rb") as file:
                self._copy(file, self._path(name))

        self.retried(name, "written", put)

    def delete_all(self) -> None:
        """Deletes the folder with all that it holds."""
        self.retried("", "deleted", lambda: self._opened[0].delete_dir(self._opened[1]))

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files, of which some may be gone."""

        def remove(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self.retried(name, "deleted", lambda: self._opened[0].delete_file(self._path(name)))

        self._each(remove, names)

    def _path(self, name: str) -> str:
        return f"{self._opened[1]}/{name}" if name else self._opened[1]

    def _copy(self, file: BinaryIO, path: str) -> None:
        with self._opened[0].open_output_stream(path, compression=None) as sink:
            shutil.copyfileobj(file, sink, _BLOCK)

    def _each(self, act: Callable[[str], None], names: Iterable[str]) -> None:
        with ThreadPoolExecutor(PARALLEL) as pool:
            pending = [pool.submit(act, name) for name in names]
            try:
                for one in pending:
                    one.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def retried(self, name: str, done: str, act: Callable[[], Result]) -> Result:
        """Calls a function until it succeeds, or no further attempt is left.

        Args:
            name: of the file.
            done: what the function does, for errors: read, written ...
            act: the function.
        """
        address = self.address / name if name else self.address
        waits = iter(WAITS)
        while True:
            try:
                return act()
            except FileNotFoundError as error:
                raise FileNotFoundError(f"{address} is missing") from error
            except pa.ArrowException as error:  # wrong options, or what pyarrow was built without
                raise ValueError(f"{address} cannot be {done}: {_one_line(error)}") from error
            except OSError as error:
                reason = _one_line(error)
                if _REFUSED.search(reason):
                    raise ValueError(f"{address} cannot be {done}: {reason}") from error
                wait = next(waits, None)
                if wait is None:
                    raise Unreachable(
                        f"{address} cannot be {done} after {len(WAITS) + 1} attempts: {reason}"
                    ) from error
                logger.warning("%s cannot be %s, next attempt in %.0f s: %s", address, done, wait, reason)
                time.sleep(wait)


class _RemoteFile(io.RawIOBase):
    """A remote file, which is opened when it is first read, and again after an error of the connection."""

    def __init__(self, folder: RemoteFolder, name: str) -> None:
        self._folder, self._name, self._place = folder, name, 0
        self._stream: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        starts = {os.SEEK_SET: lambda: 0, os.SEEK_CUR: lambda: self._place, os.SEEK_END: self._size}
        self._place = starts[whence]() + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        def read(stream: Any) -> bytes:
            stream.seek(self._place)
            return bytes(stream.read(len(buffer)))

        data = self._on_stream(read) if self._place < self._size() else b""
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def _size(self) -> int:
        return self._on_stream(lambda stream: int(stream.size()))

    def _on_stream(self, act: Callable[[Any], Result]) -> Result:
        def attempt() -> Result:
            try:
                if self._stream is None:
                    self._stream = self._folder.open_stream(self._name)
                return act(self._stream)
            except OSError:
                self._stream = None
                raise

        return self._folder.retried(self._name, "read", attempt)


def find_remote(address: Address) -> list[Address]:
    """The files that an address means: itself, all files of a folder, or those that fit a pattern with ``*`` or ``[``.

    Args:
        address: of the input.

    Returns:
        Files by name, without those whose names, or folders inside the folder, begin with a dot or an underscore.

    Raises:
        ValueError: if there are none.
    """
    parts = address.parts
    first = next((place for place, part in enumerate(parts) if _PATTERN.search(part)), None)
    folder = RemoteFolder(address)
    if first is None:
        if folder.is_file():
            return [address]
        names = [name for name in folder.sizes() if not any(part[0] in "._" for part in name.split("/"))]
    else:
        above = len("/".join(parts[first:]))
        place, mark, options = address.partition("?")
        folder = RemoteFolder(Address(place.rstrip("/")[: -above - 1] + mark + options))
        fitting = [name for name in folder.sizes() if _fits(name.split("/"), parts[first:])]
        names = [name for name in fitting if name.rpartition("/")[2][0] not in "._"]
    if not names:
        raise ValueError(f"input: {address} holds no files")
    return [folder.address / quote(name, safe="/=") for name in sorted(names)]


def _fits(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether a path fits a pattern, part by part; ``**`` stands for any folders."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_fits(names[skipped:], patterns[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], patterns[0]) and _fits(names[1:], patterns[1:])


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
