"""Copies of remote files on the local disk, named by their checksums, shared by the processes of a machine.

A copy that a process has open is locked (flock, shared), and the least recently used of the others are removed when the
folder is full. A copy is checked when a process first opens it; a damaged one is removed and fetched again. While a
file is fetched, it is locked exclusively under another name, and processes that want it wait.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dist_imsr.checks import parse_bytes, require
from dist_imsr.keys import free

logger = logging.getLogger(__name__)

_PARTIAL = ".partial"
_TOTAL = "bytes"  # holds the size of all copies; its lock is that of changes of the folder
_KEPT = 0.9  # of the limit is left when the folder is full, so that not every file needs a scan
_POLL_SECONDS = 0.05  # while another process fetches the same file


@dataclass(kw_only=True)
class CacheOptions:
    """Where copies of remote files are kept.

    Args:
        cache: a folder on a local disk for copies of the files of remote prepared data, which all runs of the machine
            share; by default, dist_imsr in $XDG_CACHE_HOME or ~/.cache.
        cache_limit: of its size, e.g. 100GiB; the copies that were not used for longest are removed. Those that are
            open stay: it should hold the spans that are read at a time.
    """

    cache: Path | None = field(default=None, metadata=free())
    cache_limit: str = field(default="100GiB", metadata=free())

    def __post_init__(self) -> None:
        require(parse_bytes(self.cache_limit) is not None, "cache_limit", self.cache_limit, "a size such as 100GiB")

    @property
    def cache_folder(self) -> Path:
        """The folder."""
        default = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return self.cache or Path(default) / "dist_imsr"


class Cache:
    """A folder of copies.

    Args:
        options: folder and limit.
    """

    _checked: dict[str, int] = {}  # noqa: RUF012  # the inode of each copy that this process has read, by checksum

    def __init__(self, options: CacheOptions) -> None:
        self.folder = options.cache_folder
        self._limit = parse_bytes(options.cache_limit) or 0
        self._warned = False

    def path(self, sha256: str) -> Path:
        """Where the copy of a file is."""
        return self.folder / "files" / sha256[:2] / sha256

    def open(self, name: str, sha256: str, size: int, blocks: Callable[[], Iterable[bytes]]) -> int:
        """Opens a copy, which is fetched if it is not there, or is damaged.

        Args:
            name: of the remote file, for errors.
            sha256: its checksum.
            size: its bytes.
            blocks: reads the remote file.

        Returns:
            A descriptor for reading; the copy stays until it and its duplicates are closed.

        Raises:
            ValueError: if the remote file does not match its checksum.
            OSError: if the folder cannot be written.
        """
        path = self.path(sha256)
        while True:
            descriptor = self._open_copy(path, size)
            if descriptor is None:
                descriptor = self._fetch(name, path, size, blocks)
            if descriptor is not None:
                os.utime(descriptor)  # when it was last used
                return descriptor

    def _open_copy(self, path: Path, size: int) -> int | None:
        """Opens and checks what is there; None if nothing sound is."""
        try:
            descriptor = os.open(path, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        if status.st_nlink and self._checked.get(path.name) == status.st_ino and status.st_size == size:
            return descriptor
        if status.st_nlink and status.st_size == size:
            with os.fdopen(os.dup(descriptor), "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest == path.name:
                self._checked[path.name] = status.st_ino
                return descriptor
        if _is_at(descriptor, path):
            logger.warning("%s is damaged, and is fetched again", path)
            path.unlink(missing_ok=True)
        os.close(descriptor)
        return None

    def _fetch(self, name: str, path: Path, size: int, blocks: Callable[[], Iterable[bytes]]) -> int | None:
        """Fetches a file; None if another process was faster."""
        partial = path.with_name(path.name + _PARTIAL)
        with self._named():
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _locked_at(descriptor, partial):
                os.close(descriptor)
                return None
            self._reserve(descriptor, size)
            digest, place = hashlib.sha256(), 0
            for block in blocks():
                digest.update(block)
                with self._named():
                    place += os.pwrite(descriptor, block, place)
            if place != size or digest.hexdigest() != path.name:
                raise ValueError(f"{name} does not match its checksum")
            self._checked[path.name] = os.fstat(descriptor).st_ino
            os.replace(partial, path)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except BaseException:
            partial.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        return descriptor

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Names the folder in errors of the disk."""
        try:
            yield
        except OSError as error:
            raise OSError(f"cache: {self.folder} cannot be written: {error.strerror}") from error

    def _reserve(self, descriptor: int, size: int) -> None:
        """Gives a new file its size, and removes old ones if there is no room for it."""
        with self._named():
            total = os.open(self.folder / _TOTAL, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(total, fcntl.LOCK_EX)
                bytes_ = int(os.pread(total, 32, 0) or 0) + size
                os.ftruncate(descriptor, 0)
                if bytes_ > self._limit:
                    bytes_ = self._make_room(size) + size
                os.ftruncate(descriptor, size)  # the disk's blocks are taken when it is written
                os.ftruncate(total, 0)
                os.pwrite(total, b"%d" % bytes_, 0)
            finally:
                os.close(total)

    def _make_room(self, size: int) -> int:
        """Removes copies, the least recently used first, but for those that are open; returns the bytes that stay."""
        found = []
        for path in (self.folder / "files").glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        stay, wanted = sum(one[1] for one in found), int(_KEPT * self._limit) - size
        for _, bytes_, path in sorted(found):
            if stay > wanted and _remove_unused(path):
                stay -= bytes_
        if stay + size > self._limit and not self._warned:
            self._warned = True
            logger.warning(
                "cache_limit: the files that are open need more than the limit, %.1f GiB with the next one: %s",
                (stay + size) / 2**30,
                self.folder,
            )
        return stay


def _locked_at(descriptor: int, path: Path) -> bool:
    """Waits for the exclusive lock of a file; False if it is meanwhile no longer at its path."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return _is_at(descriptor, path)
        except BlockingIOError:
            if not _is_at(descriptor, path):  # fetched, and open there
                return False
            time.sleep(_POLL_SECONDS)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_unused(path: Path) -> bool:
    """Removes a copy that nobody has open."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
