"""Atomic and checksummed files, and checks of the files that a manifest lists."""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import xxhash

from dist_imsr.addresses import Location

_DIGESTS: dict[str, Any] = {"sha256": hashlib.sha256, "xxh128": xxhash.xxh3_128}


class OtherFormat(ValueError):
    """The file was written by another version of this package, in another format."""


def write_whole(path: Path, text: str) -> None:
    """Writes a text file atomically, replacing an older one: after a crash, the file is the old or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    with HashedFile(partial) as file:
        file.write(text.encode())
    os.replace(partial, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file that appears by one rename, so that processes which write the same at the same time do not mix bytes.

    Args:
        path: the file; an older one is replaced.

    Yields:
        Where to write it.
    """
    partial = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    os.replace(partial, path)


def sync_folder(path: Path) -> None:
    """Flushes a folder's entries to the disk: without it, a crash of the machine may undo a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_files(paths: Sequence[Path]) -> None:
    """Flushes files and their folders to the disk."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(sync_folder, paths))
    for folder in {path.parent for path in paths}:
        sync_folder(folder)


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Holds the lock of a file, which is created; the system releases the locks of a process that dies.

    Args:
        path: the file.
        refusal: the error message if another process holds the lock.

    Raises:
        ValueError: with ``refusal``.
        OSError: if the file cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(refusal) from None
        yield
    finally:
        os.close(descriptor)


def link(source: Path, target: Path) -> None:
    """Makes a second name of a file, or a flushed copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync_files([target])


class HashedFile:
    """A new file that is hashed while it is written, and flushed to the disk at the end of its context.

    Args:
        path: the file; an older one is replaced.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = xxhash.xxh3_128()  # SHA-256 would take longer than a fast disk
        self.bytes = 0

    @property
    def closed(self) -> bool:
        """Whether the context has ended."""
        return self._file.closed

    @property
    def entry(self) -> dict[str, Any]:
        """The file's entry in a manifest: bytes and checksum."""
        return {"bytes": self.bytes, "xxh128": self._digest.hexdigest()}

    def write(self, data: Any) -> int:
        """Appends bytes, or any object with the buffer protocol; returns the number of bytes."""
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self._file.write(view)
        self.bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Does nothing: the file is flushed at the end of its context."""

    def __enter__(self) -> "HashedFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())


def digest_of(path: Path, kind: str = "sha256") -> str:
    """The checksum of a file in hexadecimal digits.

    Args:
        path: the file.
        kind: ``sha256`` or ``xxh128``.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, _DIGESTS[kind]).hexdigest()


def check_version(path: Location, found: object, newest: int) -> None:
    """Refuses a manifest of a newer version.

    Args:
        path: the manifest.
        found: its format version.
        newest: the last version that this package reads.

    Raises:
        OtherFormat: if it is newer.
        ValueError: if it is no version at all.
    """
    if not isinstance(found, int) or found < 1:
        raise ValueError(f"{path} has no format version")
    if found > newest:
        raise OtherFormat(f"{path} has format {found}; this version reads up to {newest}: upgrade dist_imsr")


def check_file(manifest: Path, name: str, entry: dict[str, Any], checksum: bool) -> None:
    """Refuses a file that differs from its manifest entry.

    Args:
        manifest: the manifest, in the folder of the file.
        name: the file's path relative to the folder.
        entry: its ``bytes``, and ``sha256`` or ``xxh128``.
        checksum: read the file and compare the checksum too, not only the size.

    Raises:
        ValueError: naming the file, if it is missing, has another size or checksum, or is outside of the folder.
    """
    path = manifest.parent / name
    if not path.resolve().is_relative_to(manifest.parent.resolve()):
        raise ValueError(f"{manifest} names {name!r}, outside its folder")
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    if path.stat().st_size != entry["bytes"]:
        raise ValueError(f"{path} has {path.stat().st_size} bytes instead of {entry['bytes']}")
    if checksum:
        kind = next((kind for kind in _DIGESTS if kind in entry), None)
        if kind is None:
            raise ValueError(f"{manifest} has no checksum of {name}")
        if digest_of(path, kind) != entry[kind]:
            raise ValueError(f"{path} does not match its checksum")
