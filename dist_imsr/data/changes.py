"""Changes of a prepared data set: one at a time, each visible at once or not at all.

``dataset.json`` is the only file that is ever replaced, by one rename or, in a remote folder, by one write: before it,
a data set is what it was, and files that it does not name are leftovers, which the next command that writes removes.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.manifest import MANIFEST, SpanEntry, named_files, read_manifest, write_manifest
from dist_imsr.data.workspace import replace_folder
from dist_imsr.files import locked, sync_files

_LOCK = ".lock"
PATTERNS = ("span=*", "users/*", "items/*", "titles/*", "waiting/*", "rejected/*", "truth_*")
"""The places of a data set's files."""


class Change:
    """A data set while it is changed, in a local folder.

    Args:
        data: the folder.
        folder: a local one for new files, by their paths in the data set.

    Attributes:
        known: the data set as it is.
        folder: as above.
    """

    def __init__(self, data: DataConfig, folder: Path) -> None:
        self._data, self.folder = data, folder
        self.known = Dataset(data)

    def commit(self, entries: Sequence[SpanEntry], in_place: bool = False, **changes: Any) -> dict[str, Any]:
        """Brings new files to where they stay, and makes them visible by replacing ``dataset.json``.

        Args:
            entries: all spans.
            in_place: whether new files are where they stay already.
            changes: other keys of ``dataset.json``.

        Returns:
            The new contents of ``dataset.json``.
        """
        before = self.known.manifest
        manifest = before | {"spans": [asdict(entry) for entry in entries]} | changes
        names = [] if in_place else [*self._files_of_new(entries), *(manifest["files"].keys() - before["files"].keys())]
        self._publish(names, manifest)
        self.known = Dataset(self._data)
        return manifest

    def _files_of_new(self, entries: Sequence[SpanEntry]) -> Iterator[str]:
        """The files of those spans that the data set does not have yet."""
        earlier = {entry.name for entry in self.known.entries}
        for entry in entries:
            if entry.name not in earlier:
                yield from json.loads((self.folder / entry.manifest_file).read_text())["files"]
                yield entry.manifest_file

    def _publish(self, names: Sequence[str], manifest: dict[str, Any]) -> None:
        sync_files([self.folder / name for name in names])
        write_manifest(self.folder, manifest)


@contextlib.contextmanager
def changing(data: DataConfig, folder: Path) -> Iterator[Change]:
    """Locks a local data set, and removes what an interrupted change left in its folder, before and after.

    Args:
        data: the data set.
        folder: its folder.

    Yields:
        The data set, to be changed.

    Raises:
        ValueError: if another process is changing it.
    """
    with locked(folder / _LOCK, _refusal("append", folder)):
        _remove_leftovers(folder)
        try:
            yield Change(data, folder)
        finally:
            _remove_leftovers(folder)


@contextlib.contextmanager
def creating(output: Path, overwrite: bool) -> Iterator[Path]:
    """Creates the folder of a data set, as `replace_folder` does; one that it replaces is locked meanwhile.

    Args:
        output: the folder.
        overwrite: whether to replace a data set.

    Yields:
        The folder to fill.

    Raises:
        ValueError: if another process is changing the data set that would be replaced, or if the folder exists.
    """
    there = (output / MANIFEST).is_file()
    lock = locked(output / _LOCK, _refusal("output", output)) if there else contextlib.nullcontext()
    with lock, replace_folder(output, MANIFEST, overwrite) as folder:
        yield folder


def _refusal(key: str, folder: Path) -> str:
    return f"{key}: another process is changing {folder}; wait for it"


def _remove_leftovers(folder: Path) -> None:
    """Removes the files that ``dataset.json`` does not name, in the places of a data set's files, and retired rows."""
    names, retired = named_files(read_manifest(folder))
    named = {folder / name for name in names}
    for pattern in (*PATTERNS, "duckdb-*", "spark-*", *retired):
        for path in set(folder.glob(pattern)) - named:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
