"""Input files as people have them: several, compressed, from a pipe; each as bytes on disk that DuckDB can read."""

import bz2
import contextlib
import glob
import gzip
import lzma
import os
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import unquote

import duckdb
import pyarrow as pa

from dist_imsr.addresses import Address, Location
from dist_imsr.checks import require
from dist_imsr.data.remote import RemoteFolder, find_remote

STDIN = Path("/dev/stdin")
_COPIED = 1 << 23  # bytes at a time
_PATTERN = set("*?[")
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # how Hive writes that there is no value
PARQUET = b"PAR1"  # the first bytes of a Parquet file

_COMPRESSIONS = {  # by the first bytes
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
}


@dataclass(frozen=True)
class InputFile:
    """One input file.

    Args:
        name: as the user knows it, for messages.
        path: a regular file with its bytes.
        compression: of the bytes; None for none.
        folders: the values of the folders named ``KEY=VALUE`` above it, by key, if they are to be read.
    """

    name: str
    path: Path
    compression: str | None = None
    folders: dict[str, str] = field(default_factory=dict)

    def open(self) -> IO[bytes]:
        """Opens the decompressed bytes.

        Raises:
            ValueError: for a ZIP archive of more than one file.
        """
        if self.compression is None:
            return self.path.open("rb")
        if self.compression == "zip":
            return _open_zip(self)
        if self.compression == "zstd":
            return cast(IO[bytes], pa.CompressedInputStream(pa.OSFile(str(self.path)), "zstd"))
        opener: Any = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}[self.compression]
        return cast(IO[bytes], opener(self.path))


def _open_zip(file: InputFile) -> IO[bytes]:
    archive = zipfile.ZipFile(file.path)
    members = [one for one in archive.infolist() if not one.is_dir() and Path(one.filename).name[0] not in "._"]
    if any(member.flag_bits & 1 for member in members):
        raise ValueError(f"input: {file.name} is encrypted: unpack it and name the log")
    if len(members) != 1:
        raise ValueError(f"input: {file.name} is a ZIP archive of {len(members)} files: unpack it and name the log")
    return archive.open(members[0])


@contextlib.contextmanager
def name_file(name: str) -> Iterator[None]:
    """Turns every error of the libraries that read a file into one line that names it.

    Raises:
        ValueError: naming the file.
    """
    unreadable = (
        duckdb.Error,
        pa.ArrowException,
        OSError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
        UnicodeError,
    )
    try:
        yield
    except duckdb.OutOfMemoryException:  # of the machine, not of the file
        raise
    except (*unreadable, NotImplementedError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"input: {name} cannot be read: {reason}") from error


def find_files(inputs: Sequence[Location]) -> list[Location]:
    """The files that are meant: files, pipes, all files of folders, and patterns such as ``logs/*.csv``.

    Each may be an address as well. Files of a folder or pattern are in the order of their names; those whose names, or
    folders inside the folder, begin with a dot or an underscore (as Spark's ``_SUCCESS``) do not count.

    Args:
        inputs: as the user wrote them; ``-`` is the standard input.

    Raises:
        ValueError: naming what does not exist, holds no file, or is named twice.
    """
    found: list[Location] = []
    for path in inputs:
        if isinstance(path, Address):
            found += find_remote(path)
        elif str(path) == "-":
            found.append(STDIN)
        elif path.is_dir():
            found += _visible(path, sorted(path.rglob("*")))
        elif path.exists():
            found.append(path)
        elif _PATTERN & set(str(path)):
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            found += _visible(path, matches)
        else:
            raise ValueError(f"input: {path} does not exist")
    seen: dict[Location, Location] = {}
    for path in found:
        other = seen.setdefault(path if isinstance(path, Address) else path.resolve(), path)
        if other is not path:
            raise ValueError(f"input: {path} is named twice" + (f", also as {other}" if other != path else ""))
    return found


def _visible(named: Path, paths: Sequence[Path]) -> list[Path]:
    hidden = named.parts if named.is_dir() else ()
    kept = [
        path
        for path in paths
        if path.is_file() and not any(part[0] in "._" for part in path.parts[len(hidden) or -1 :])
    ]
    if not kept:
        raise ValueError(f"input: {named} holds no files")
    return kept


def open_input(path: Location, scratch: Path, folders: bool = False, start: Path = Path()) -> InputFile:
    """Finds out how a file is compressed, by its bytes; a pipe or a remote file is copied to disk first.

    Args:
        path: of `find_files`.
        scratch: a folder for copies.
        folders: whether folders named ``KEY=VALUE`` hold values.
        start: the folder where relative paths begin.

    Raises:
        ValueError: naming the file, if it is empty, a terminal, or cannot be read.
        ConnectionError: naming the address, if it cannot be reached.
    """
    name = "the standard input" if path == STDIN else str(path)
    parts = map(unquote, path.parts) if isinstance(path, Address) else path.parts
    values = dict(part.split("=", 1) for part in [*parts][:-1] if "=" in part) if folders else {}
    values = {key: "" if value == _NO_PARTITION else unquote(value) for key, value in values.items()}
    path = download(path, scratch) if isinstance(path, Address) else start / path
    with name_file(name):
        if path == STDIN and sys.stdin is not None and sys.stdin.isatty():
            raise ValueError("input: the standard input is a terminal: pipe a log into it")
        if not stat.S_ISREG(os.stat(path).st_mode):
            copy = scratch / "pipe"
            with path.open("rb") as source, copy.open("wb") as sink:
                shutil.copyfileobj(source, sink, _COPIED)
            path = copy
        with path.open("rb") as source:
            head = source.read(max(map(len, _COMPRESSIONS)))
        compression = next((kind for magic, kind in _COMPRESSIONS.items() if head.startswith(magic)), None)
        file = InputFile(name, path, compression, values)
        with file.open() as source:
            empty = not source.read(1)
    if empty:
        raise ValueError(f"input: {name} is empty")
    return file


def download(address: Address, scratch: Path) -> Path:
    """Copies a remote file into a folder; returns the copy.

    Args:
        address: of the file.
        scratch: the folder.
    """
    copy = scratch / "remote"
    with copy.open("wb") as sink:
        for block in RemoteFolder(address).blocks():
            sink.write(block)
    return copy


def is_parquet(file: InputFile) -> bool:
    """Whether the decompressed bytes begin as those of a Parquet file."""
    with name_file(file.name), file.open() as source:
        return source.read(len(PARQUET)) == PARQUET


def decompressed(file: InputFile, scratch: Path, progress: Callable[[float], None]) -> InputFile:
    """The same file without compression, copied if it has one.

    Args:
        file: the file.
        scratch: a folder for the copy.
        progress: called with the fraction that is done.
    """
    if file.compression is None:
        return file
    copy = scratch / "unpacked"
    size = os.path.getsize(file.path)
    with name_file(file.name), file.open() as source, copy.open("wb") as sink:
        while block := source.read(_COPIED):
            sink.write(block)
            progress(min(sink.tell() / (4 * size), 1.0))
    return InputFile(file.name, copy, None, file.folders)


def require_column(name: str, key: str, names: Sequence[str], file: str) -> None:
    """Refuses a configured column that a file does not have, or has twice.

    Args:
        name: of the column.
        key: of the configuration.
        names: the file's columns.
        file: its name.

    Raises:
        ValueError: naming the key and the file's columns.
    """
    if name not in names:
        raise ValueError(f"{key}: {file} has no column {name!r}; its columns are {', '.join(names)}")
    require(names.count(name) == 1, key, name, f"a column that {file} has once")
