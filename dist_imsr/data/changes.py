"""Changes of a prepared data set: one at a time, each visible at once or not at all.

``dataset.json`` is the only file that is ever replaced, by one rename: before it, a data set is what it was, and files
that it does not name are leftovers, which the next command that writes removes.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dist_imsr.data.dataset import MANIFEST, DataConfig, Dataset, SpanEntry, read_manifest
from dist_imsr.files import locked, sync_files, write_whole

_LOCK = ".lock"


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[Dataset]:
    """Locks a data set, and removes what an interrupted change left in its folder, before and after.

    Args:
        folder: of the data set.

    Yields:
        The data set as it is.

    Raises:
        ValueError: if another process is changing it.
    """
    with locked(folder / _LOCK, _refusal("append", folder)):
        _remove_leftovers(folder)
        try:
            yield Dataset(DataConfig(folder))
        finally:
            _remove_leftovers(folder)


def replacing(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Locks the data set of a folder, if it holds one, while another takes its place.

    Args:
        folder: of the data set.

    Raises:
        ValueError: if another process is changing it; when the context begins.
    """
    if not (folder / MANIFEST).is_file():
        return contextlib.nullcontext()
    return locked(folder / _LOCK, _refusal("output", folder))


def commit(known: Dataset, entries: Sequence[SpanEntry], **changes: Any) -> dict[str, Any]:
    """Flushes new files to the disk, and makes them visible by replacing ``dataset.json``.

    Args:
        known: the data set before.
        entries: all spans.
        changes: other keys of ``dataset.json``.

    Returns:
        The new contents of ``dataset.json``.
    """
    manifest = known.manifest | {"spans": [asdict(entry) for entry in entries]} | changes
    earlier = {entry.name for entry in known.entries}
    new = [entry for entry in entries if entry.name not in earlier]
    names = [name for entry in new for name in (*known.files_of(entry), entry.manifest_file)]
    names += manifest["files"].keys() - known.manifest["files"].keys()
    sync_files([known.path / name for name in names])
    write_manifest_file(known.path, manifest)
    return manifest


def write_manifest_file(folder: Path, manifest: dict[str, Any]) -> None:
    """Replaces ``dataset.json`` by one rename."""
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _refusal(key: str, folder: Path) -> str:
    return f"{key}: another process is changing {folder}; wait for it"


def _remove_leftovers(folder: Path) -> None:
    """Removes the files that ``dataset.json`` does not name, in the places of a data set's files, and retired rows."""
    manifest = read_manifest(folder)
    entries = [SpanEntry(**entry) for entry in manifest["spans"]]
    names = [*manifest["files"], *(f"span={entry.name}" for entry in entries)]
    names += [entry.ids_file(table) for entry in entries for table in ("users", "items")]
    named = {folder / name for name in names}
    patterns = ["span=*", "users/*", "items/*", "waiting/*", "rejected/*", "truth_*", "duckdb-*"]
    patterns += [f"span={entry.name}/bucket=*" for entry in entries if entry.retired]
    for pattern in patterns:
        for path in set(folder.glob(pattern)) - named:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
