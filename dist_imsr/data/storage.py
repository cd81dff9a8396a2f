"""Where the files of prepared data are: in a local folder, or in a remote one with copies on the local disk."""

import contextlib
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from dist_imsr.addresses import Address, Location
from dist_imsr.data.cache import Cache, CacheOptions
from dist_imsr.data.remote import RemoteFolder
from dist_imsr.files import check_file, whole_file

Entry = dict[str, Any]
"""Of a file in a manifest: its bytes and sha256."""


class Storage(Protocol):
    """The files of one data set, by their paths in its folder."""

    def check(self, name: str, entry: Entry, checksum: bool) -> None:
        """Refuses a file that differs from its manifest entry; reads it only for the checksum.

        Raises:
            ValueError: naming the file.
        """

    def local(self, name: str) -> Path:
        """The path of a checked file on this machine, which stays while the storage lives.

        Raises:
            FileNotFoundError: if it is gone.
        """

    def map(self, name: str) -> pa.Buffer:
        """The bytes of a checked file, mapped into memory.

        Raises:
            FileNotFoundError: if it is gone.
        """

    def open(self, name: str) -> BinaryIO:
        """Opens a file of which a part is read, such as a footer; without its checksum.

        Raises:
            FileNotFoundError: if it is gone.
        """


class LocalStorage:
    """A folder on this machine."""

    def __init__(self, folder: Path, manifest: str) -> None:
        self._folder, self._manifest = folder, folder / manifest

    def check(self, name: str, entry: Entry, checksum: bool) -> None:
        """As in `Storage`."""
        check_file(self._manifest, name, entry, checksum)

    def local(self, name: str) -> Path:
        """As in `Storage`."""
        return self._folder / name

    def map(self, name: str) -> pa.Buffer:
        """As in `Storage`."""
        return pa.memory_map(str(self._folder / name)).read_buffer()

    def open(self, name: str) -> BinaryIO:
        """As in `Storage`."""
        return (self._folder / name).open("rb")

    def __getstate__(self) -> dict[str, Any]:
        # For processes that may have another working directory.
        return {"_folder": self._folder.resolve(), "_manifest": self._manifest.resolve()}


class RemoteStorage:
    """A remote folder, whose files are copied to the local disk when they are first read.

    Sizes are checked by one listing of the folder, contents by the checksums of the copies.

    Args:
        address: of the folder.
        options: where the copies are kept.
        entries: of files that are checked already.
    """

    def __init__(self, address: Address, options: CacheOptions, entries: Mapping[str, Entry] | None = None) -> None:
        self._remote, self._options, self._cache = RemoteFolder(address), options, Cache(options)
        self._sizes: dict[str, int] | None = None
        self._lock = threading.Lock()
        self._entries = dict(entries or {})  # of checked files
        self._open: dict[str, int] = {}  # descriptors of files whose path was given
        weakref.finalize(self, _close, self._open)

    def check(self, name: str, entry: Entry, checksum: bool) -> None:
        """As in `Storage`."""
        address = self._remote.address / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{self._remote.address} names {name!r}, outside its folder")
        if "sha256" not in entry:
            raise ValueError(f"{self._remote.address} has no checksum of {name}")
        with self._lock:  # several threads check at a time
            self._sizes = self._remote.sizes() if self._sizes is None else self._sizes
        if name not in self._sizes:
            raise ValueError(f"{address} is missing")
        if self._sizes[name] != entry["bytes"]:
            raise ValueError(f"{address} has {self._sizes[name]} bytes instead of {entry['bytes']}")
        self._entries[name] = entry
        if checksum:
            os.close(self._descriptor(name))

    def local(self, name: str) -> Path:
        """As in `Storage`."""
        if name not in self._open:
            self._open[name] = self._descriptor(name)
        return self._cache.path(self._entries[name]["sha256"])

    def map(self, name: str) -> pa.Buffer:
        """As in `Storage`; the copy is locked as long as its bytes are in use."""
        descriptor = self._descriptor(name)
        try:
            return pa.py_buffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))  # it duplicates the descriptor
        finally:
            os.close(descriptor)

    def open(self, name: str) -> BinaryIO:
        """As in `Storage`."""
        return self._remote.open(name)

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteStorage, (self._remote.address, self._options, self._entries)

    def _descriptor(self, name: str) -> int:
        entry = self._entries.get(name)
        if entry is None:
            raise FileNotFoundError(f"{self._remote.address / name} is missing")
        address = str(self._remote.address / name)
        return self._cache.open(address, entry["sha256"], entry["bytes"], lambda: self._remote.blocks(name))


def _close(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


def open_storage(folder: Location, options: CacheOptions, manifest: str) -> Storage:
    """The files of a data set.

    Args:
        folder: of the data set.
        options: where copies of remote files are kept.
        manifest: the path of its manifest in the folder.
    """
    return RemoteStorage(folder, options) if isinstance(folder, Address) else LocalStorage(folder, manifest)


def read_bytes(folder: Location, name: str) -> bytes | None:
    """The bytes of a small file as it is now; None if there is none."""
    try:
        return RemoteFolder(folder).read(name) if isinstance(folder, Address) else (folder / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


@contextlib.contextmanager
def new_file(folder: Location, name: str) -> Iterator[Path]:
    """A file of a data set, which appears whole: by one rename, or by an upload.

    Args:
        folder: of the data set.
        name: the path in it.

    Yields:
        Where to write it, on this machine.
    """
    if isinstance(folder, Address):
        with task_folder() as scratch:
            yield scratch / "file"
            RemoteFolder(folder).upload_file(scratch / "file", name)
    else:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            yield partial


@contextlib.contextmanager
def task_folder() -> Iterator[Path]:
    """A temporary folder on the local disk, in a task of Spark where it keeps its own, which go with the executor."""
    parent = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0]
    with tempfile.TemporaryDirectory(prefix="dist_imsr-", dir=parent if os.path.isdir(parent) else None) as folder:
        yield Path(folder)
