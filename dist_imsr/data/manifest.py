"""What prepared data record of themselves: ``dataset.json`` has the spans, the manifest of a span has its files."""

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_imsr.addresses import Location
from dist_imsr.data.remote import RemoteFolder
from dist_imsr.data.storage import new_file, read_bytes
from dist_imsr.files import check_version, digest_of, write_whole

FORMAT_VERSION = 2
MANIFEST = "dataset.json"
TITLES = "titles"  # the folder of items' titles, one file for each preparation
_NOT_IN_MANIFEST = ("name", "digest", "manifest", "retired")  # what may change later, and what only the manifest gives

Files = dict[str, dict[str, Any]]
"""Entries of files in a manifest, by their paths in the data set's folder."""


@dataclass(frozen=True, kw_only=True)
class SpanEntry:
    """What ``dataset.json`` records of a span.

    Args:
        name: of its folder and of its parts, ``span=NAME``: the span's number, and a dot and a version if users were
            forgotten.
        first_second: the first unix second of the span.
        end_second: the first unix second after it.
        interactions: their number.
        active_users: users with interactions in the span.
        trainable_users: those with at least 2 interactions that are not held out.
        split_users: those of whom interactions are held out.
        tested_users: those of whom interactions are held out and who are known from an earlier span.
        interactions_with_new_items: those with items that no earlier span has.
        interactions_of_returning_users: those of users who are known from an earlier span.
        items: the number of items known by the span's end.
        users: the number of users known by the span's end, in each bucket; those who were forgotten count.
        digest: the checksum of the span's manifest as it was first written, by which data of spans are compared.
        manifest: the entry of the span's manifest now: bytes and sha256.
        met_since: the first span that ``met_before`` looks back to; later than 0 if rows had been retired before.
        retired: whether the rows were deleted.
    """

    name: str
    first_second: int
    end_second: int
    interactions: int
    active_users: int
    trainable_users: int
    split_users: int
    tested_users: int
    interactions_with_new_items: int
    interactions_of_returning_users: int
    items: int
    users: list[int]
    digest: str
    manifest: dict[str, Any]
    met_since: int = 0
    retired: bool = False

    def bucket_file(self, bucket: int) -> str:
        """The path of a bucket's rows in the data set's folder."""
        return f"span={self.name}/bucket={bucket:03d}.arrow"

    @property
    def item_counts_file(self) -> str:
        """The path of the numbers of interactions by item."""
        return f"span={self.name}/item_counts.arrow"

    def ids_file(self, table: str) -> str:
        """The path of the raw ids that are new in the span; the table is ``users`` or ``items``."""
        return f"{table}/span={self.name}.parquet"

    @property
    def manifest_file(self) -> str:
        """The path of the span's manifest."""
        return f"span={self.name}/manifest.json"


def read_manifest(folder: Location, key: str = "data.path") -> dict[str, Any]:
    """Reads ``dataset.json``.

    Args:
        folder: of the data set.
        key: of the configuration that names it, for errors.

    Raises:
        ValueError: naming the key and the folder, if there is none; the file, if it has another format.
    """
    path = folder / MANIFEST
    text = read_bytes(folder, MANIFEST)
    if text is None:
        raise ValueError(f"{key}: {folder} holds no {MANIFEST}: write it with launch/prepare.py")
    try:
        manifest: dict[str, Any] = json.loads(text)
        version = manifest["format_version"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no manifest of a prepared data set ({error!r}): prepare it again") from error
    check_version(path, version, FORMAT_VERSION)
    if version < FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {version}, and this version reads {FORMAT_VERSION}: prepare the log again: "
            f"{_command_of(manifest, folder)} --overwrite true"
        )
    return manifest


def write_manifest(folder: Location, manifest: dict[str, Any]) -> None:
    """Replaces ``dataset.json`` by one rename, or by one write."""
    text = json.dumps(manifest, indent=1) + "\n"
    if isinstance(folder, Path):
        write_whole(folder / MANIFEST, text)
    else:
        RemoteFolder(folder).write(MANIFEST, text.encode())


def named_files(manifest: dict[str, Any]) -> tuple[set[str], list[str]]:
    """The files and folders that ``dataset.json`` names, and patterns of those in them that are retired."""
    entries = [SpanEntry(**entry) for entry in manifest["spans"]]
    names = [*manifest["files"], *(f"span={entry.name}" for entry in entries)]
    names += [entry.ids_file(table) for entry in entries for table in ("users", "items")]
    return set(names), [f"span={entry.name}/bucket=*" for entry in entries if entry.retired]


def write_span_manifest(folder: Location, entry: SpanEntry, files: Files) -> SpanEntry:
    """Writes the manifest of a span.

    Args:
        folder: of the data set.
        entry: of the span; one that has a digest keeps it.
        files: of the span.

    Returns:
        The entry with the manifest's checksum.
    """
    facts = {name: value for name, value in asdict(entry).items() if name not in _NOT_IN_MANIFEST}
    text = (json.dumps(facts | {"files": dict(sorted(files.items()))}, indent=1) + "\n").encode()
    with new_file(folder, entry.manifest_file) as path:
        path.write_bytes(text)
    digest = hashlib.sha256(text).hexdigest()
    values = asdict(entry) | {"digest": entry.digest or digest, "manifest": {"bytes": len(text), "sha256": digest}}
    return SpanEntry(**values)


def manifest_entry(path: Path, rows: int) -> dict[str, Any]:
    """The manifest's entry of a file: bytes, sha256 and rows."""
    return {"bytes": path.stat().st_size, "sha256": digest_of(path), "rows": rows}


def _command_of(manifest: dict[str, Any], folder: Location) -> str:
    """The command that prepared a data set of format 1."""
    source, words = manifest.get("source", {}), ["python", "launch/prepare.py"]
    options = {"source": source.get("name"), "input": source.get("input"), **manifest.get("options", {})}
    for key, value in {**options, "output": str(folder)}.items():
        section = {f"{key}.{name}": one for name, one in value.items()} if isinstance(value, dict) else {key: value}
        for name, one in section.items():
            if one is not None:
                words += [f"--{name.rstrip('_')}", one if isinstance(one, str) else json.dumps(one)]
    return shlex.join(words)
