"""Writes prepared data to a remote folder, made visible by ``dataset.json``: from a local one, or file by file."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dist_imsr.addresses import Address
from dist_imsr.data.changes import PATTERNS, Change
from dist_imsr.data.claims import FOLDER, claimed
from dist_imsr.data.dataset import DataConfig
from dist_imsr.data.manifest import MANIFEST, named_files, read_manifest, write_manifest
from dist_imsr.data.remote import RemoteFolder


class RemoteChange(Change):
    """A data set in a remote folder while it is changed.

    Args:
        data: the data set.
        folder: a local one for new files, until they are uploaded.
        remote: the data set's folder.
    """

    def __init__(self, data: DataConfig, folder: Path, remote: RemoteFolder) -> None:
        super().__init__(data, folder)
        self._remote = remote

    def _publish(self, names: Sequence[str], manifest: dict[str, Any]) -> None:
        self._remote.upload(self.folder, names)
        if read_manifest(self._remote.address) != self.known.manifest:
            raise ValueError(f"append: {self._remote.address} has changed meanwhile; start the same command again")
        write_manifest(self._remote.address, manifest)


@contextlib.contextmanager
def changing_remote(data: DataConfig, address: Address, scratch: Path) -> Iterator[Change]:
    """Claims a remote data set, and removes what an interrupted change left in its folder, before and after.

    Args:
        data: the data set.
        address: its folder.
        scratch: a local folder.

    Yields:
        The data set, to be changed.

    Raises:
        ValueError: if another process is changing it.
    """
    remote = RemoteFolder(address)
    with claimed(remote, "append"), _temporary(scratch) as folder:
        _remove_leftovers(remote)
        try:
            yield RemoteChange(data, folder, remote)
        except BaseException:
            with contextlib.suppress(OSError, ValueError):
                _remove_leftovers(remote)
            raise
        _remove_leftovers(remote)


@contextlib.contextmanager
def creating_remote(output: Address, overwrite: bool, scratch: Path) -> Iterator[Path]:
    """Creates a data set in a remote folder: it is there once ``dataset.json`` is written, which comes last.

    One that is replaced is removed before the upload.

    Args:
        output: the folder.
        overwrite: whether to replace a data set.
        scratch: a local folder.

    Yields:
        A local folder to fill, ``dataset.json`` included.

    Raises:
        ValueError: if the folder holds files and may not be replaced, or if another process is changing it.
    """
    remote = RemoteFolder(output)
    with claimed(remote, "output") as left_over, _temporary(scratch) as folder:
        _files_to_replace(remote, overwrite, left_over)
        yield folder
        old = _files_to_replace(remote, overwrite, left_over)
        remote.delete(name for name in old if name == MANIFEST)
        remote.delete(name for name in old if name != MANIFEST)
        files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        names = sorted(name for name in files if name != MANIFEST)
        try:
            remote.upload(folder, names)
            remote.write(MANIFEST, (folder / MANIFEST).read_bytes())
        except BaseException:
            with contextlib.suppress(OSError, ValueError):
                remote.delete([MANIFEST])
                remote.delete(names)
            raise


@contextlib.contextmanager
def creating_in_place(output: Address) -> Iterator[Address]:
    """Creates a data set in a remote folder, as `creating_remote` does, without a local copy; it replaces none.

    Args:
        output: the folder.

    Yields:
        The address to fill, ``dataset.json`` last.

    Raises:
        ValueError: as of `creating_remote`.
    """
    remote = RemoteFolder(output)
    with claimed(remote, "output") as left_over:
        remote.delete(_files_to_replace(remote, False, left_over))
        try:
            yield output
        except BaseException:
            with contextlib.suppress(OSError, ValueError):
                remote.delete(name for name in remote.sizes() if _fits(name, PATTERNS))
            raise


@contextlib.contextmanager
def _temporary(scratch: Path) -> Iterator[Path]:
    """A local folder for new files, which is deleted at the end of the block."""
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix="prepare-", dir=scratch, ignore_cleanup_errors=True)
    except OSError as error:
        raise ValueError(f"temp_dir: {scratch} cannot be written: {error}") from error
    with folder as path:
        yield Path(path)


def _files_to_replace(remote: RemoteFolder, overwrite: bool, left_over: bool) -> list[str]:
    """The files of the data set that is replaced, or those of an upload that was killed.

    Raises:
        ValueError: if there are others, or if they may not be replaced.
    """
    names = [name for name in remote.sizes() if not name.startswith(f"{FOLDER}/")]
    ours = [name for name in names if name == MANIFEST or _fits(name, PATTERNS)]
    if not names or (left_over and MANIFEST not in names and ours == names):
        return names
    if not overwrite:
        raise ValueError(f"output: {remote.address} exists; choose another or replace it with --overwrite true")
    if MANIFEST not in names:
        raise ValueError(
            f"output: {remote.address} is no prepared data set (it has no {MANIFEST}): it is not overwritten"
        )
    return ours


def _remove_leftovers(remote: RemoteFolder) -> None:
    """Removes the files that ``dataset.json`` does not name, in the places of a data set's files, and retired rows."""
    named, retired = named_files(read_manifest(remote.address, "append"))
    remote.delete(
        name
        for name in remote.sizes()
        if _fits(name, retired) or (_fits(name, PATTERNS) and named.isdisjoint((name, name.rpartition("/")[0])))
    )


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
