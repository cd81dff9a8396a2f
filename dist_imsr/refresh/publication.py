"""Folders of published files, and the link that names the current one: it changes by one rename, when all is there."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_imsr.files import sync_folder, write_whole

_CURRENT, _RECORD = "current", "publication.json"


class Publication:
    """The files that are published of one model; what an earlier process wrote of them is kept.

    Args:
        folder: of all publications.
        span: that was trained last.
        identity: plain values; another publication differs in them.
    """

    def __init__(self, folder: Path, span: int, identity: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"span={span}-{digest[:12]}"
        """Its folder once it is complete."""
        self.partial = folder / f".{self.path.name}.partial"
        """Where it is made."""

    @property
    def published(self) -> bool:
        """Whether it is the current one."""
        return current(self.path.parent) == self.path

    def add(self, name: str, write: Callable[[Path], None]) -> None:
        """Adds a file or folder, unless it is there.

        Args:
            name: in the publication's folder.
            write: writes it to a path.
        """
        path, unfinished = self.partial / name, self.partial / f".{name}"
        if path.exists() or self.path.exists():
            return
        self.partial.mkdir(exist_ok=True)
        _remove(unfinished)
        write(unfinished)
        for one in (*unfinished.rglob("*"), unfinished):
            sync_folder(one)
        unfinished.rename(path)

    def publish(self, record: dict[str, Any]) -> None:
        """Makes this the current publication.

        Args:
            record: for publication.json.
        """
        if not self.path.exists():
            for leftover in self.partial.glob(".*"):  # of killed processes
                _remove(leftover)
            write_whole(self.partial / _RECORD, json.dumps(record, indent=1) + "\n")
            self.partial.rename(self.path)
        link = self.path.parent / f".{_CURRENT}.partial"
        link.unlink(missing_ok=True)
        link.symlink_to(self.path.name)
        os.replace(link, self.path.parent / _CURRENT)
        sync_folder(self.path.parent)

    def remove_older(self, keep: int) -> None:
        """Removes older publications, and what killed processes left of others.

        Args:
            keep: number of publications that stay, this one included.
        """
        others = [one for one in self.path.parent.glob("span=*") if one != self.path]
        others.sort(key=lambda one: one.stat().st_mtime, reverse=True)
        for old in others[keep - 1 :]:
            old.rename(old.with_name(f".{old.name}.partial"))  # no reader sees a part of it
        for partial in self.path.parent.glob(".span=*.partial"):
            _remove(partial)


def current(folder: Path) -> Path | None:
    """The current publication in a folder.

    Raises:
        ValueError: if there is something else in the place of the link.
    """
    link = folder / _CURRENT
    if link.is_symlink():
        return folder / os.readlink(link)
    if link.exists():
        raise ValueError(f"publish.folder: {link} is no link to a publication; name another folder")
    return None


def record_of(publication: Path) -> dict[str, Any]:
    """The contents of a publication's publication.json."""
    record: dict[str, Any] = json.loads((publication / _RECORD).read_text())
    return record


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
