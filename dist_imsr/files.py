"""Files that are there whole or not at all, and the checks of those that a manifest names."""

import hashlib
import os
from pathlib import Path
from typing import Any

import xxhash

_DIGESTS: dict[str, Any] = {"sha256": hashlib.sha256, "xxh128": xxhash.xxh3_128}


class NewerFormat(ValueError):
    """A newer version of this package wrote it."""


def write_whole(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all, even if the machine fails.

    Args:
        path: the file; an older one is replaced.
        text: what it is to hold.
    """
    partial = path.with_name(f".{path.name}.partial")
    with SealedFile(partial) as file:
        file.write(text.encode())
    os.replace(partial, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Brings a folder's names to the disk: without it, a rename may be lost with the machine.

    Args:
        path: the folder.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SealedFile:
    """A new file that is hashed while it is written, and on the disk when its context ends.

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
        """What a manifest tells of the file."""
        return {"bytes": self.bytes, "xxh128": self._digest.hexdigest()}

    def write(self, data: Any) -> int:
        """Appends.

        Args:
            data: bytes, or what gives a view of them.

        Returns:
            How many bytes.
        """
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self._file.write(view)
        self.bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Does nothing: the file reaches the disk when its context ends."""

    def __enter__(self) -> "SealedFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())


def digest_of(path: Path, kind: str = "sha256") -> str:
    """A file's checksum.

    Args:
        path: the file.
        kind: ``sha256`` or ``xxh128``.

    Returns:
        Hexadecimal digits.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, _DIGESTS[kind]).hexdigest()


def check_version(path: Path, found: object, newest: int) -> None:
    """Refuses a manifest that a newer version wrote.

    Args:
        path: the manifest.
        found: its format version.
        newest: the last one that this version reads.

    Raises:
        NewerFormat: if it is newer.
        ValueError: if it is none.
    """
    if not isinstance(found, int) or found < 1:
        raise ValueError(f"{path} has no format version")
    if found > newest:
        raise NewerFormat(f"{path} has format {found}; this version reads up to {newest}: upgrade dist_imsr")


def check_file(manifest: Path, name: str, entry: dict[str, Any], checksum: bool) -> None:
    """Refuses a file that is not what its manifest tells.

    Args:
        manifest: in whose folder the file stands.
        name: the file's path inside the folder.
        entry: its ``bytes``, and ``sha256`` or ``xxh128``.
        checksum: whether the file is read and its checksum compared.

    Raises:
        ValueError: naming the file, if it is missing, or of another size or checksum, or stands outside the folder.
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
            raise ValueError(f"{manifest} tells no checksum of {name}")
        if digest_of(path, kind) != entry[kind]:
            raise ValueError(f"{path} does not match its checksum")
