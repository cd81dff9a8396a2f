import os
import shutil
from pathlib import Path

import pytest

from dist_imsr.refresh.publication import Publication, current, record_of

POINTS = [(os, "replace"), (os, "rename"), (os, "fsync"), (os, "symlink"), (os, "mkdir"), (shutil, "rmtree")]


class Killed(BaseException):
    """The process ends here."""


def _write(text):
    def write(path):
        if text == "folder":
            path.mkdir()
            path = path / "inside"
        path.write_text(text)
        (path.parent / f".{path.name}.000.partial").write_text("of a killed rank")

    return write


def _publish(folder, span, keep=2, model="a"):
    publication = Publication(folder, span, {"model": model, "span": span})
    if not publication.published:
        publication.add("recommendations.parquet", _write(f"recommendations {span}"))
        publication.add("export", _write("folder"))
        publication.publish({"span": span})
    publication.remove_older(keep)
    return publication


def _files(folder):
    links = {"current": os.readlink(folder / "current")} if (folder / "current").is_symlink() else {}
    return links | {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_publication_replaces_the_last_and_keeps_it_for_readers(tmp_path):
    paths = [_publish(tmp_path, span).path for span in (7, 8, 9)]
    assert current(tmp_path) == paths[2]
    assert {path for path in tmp_path.iterdir() if not path.is_symlink()} == {*paths[1:]}
    assert (tmp_path / "current" / "recommendations.parquet").read_text() == "recommendations 9"
    assert record_of(tmp_path / "current") == {"span": 9}
    assert {path.name for path in paths[2].iterdir()} == {"export", "publication.json", "recommendations.parquet"}
    other = _publish(tmp_path, 9, model="b", keep=1)  # another model of the same span
    assert other.path != paths[2]
    assert {path for path in tmp_path.iterdir() if not path.is_symlink()} == {other.path}


class Points:
    """Counts the calls that change the disk, and raises `Killed` at one of them."""

    def __init__(self, monkeypatch):
        self.passed, self.kill = 0, None
        for owner, name in POINTS:
            monkeypatch.setattr(owner, name, self._counting(getattr(owner, name)))

    def _counting(self, original):
        def call(*args, **kwargs):
            self.passed += 1
            if self.passed == self.kill:
                raise Killed
            return original(*args, **kwargs)

        return call

    def at(self, kill):
        self.passed, self.kill = 0, kill


def test_killed_anywhere_it_ends_with_the_same_files(tmp_path, monkeypatch):
    whole, before = tmp_path / "whole", tmp_path / "before"
    for folder in (whole, before):
        folder.mkdir()
        _publish(folder, 7)
    old, points = _files(whole), Points(monkeypatch)
    _publish(whole, 8, keep=1)
    count, new = points.passed, _files(whole)
    assert count > 10
    for kill in range(1, count + 1):
        points.at(None)
        folder = shutil.copytree(before, tmp_path / f"killed-{kill}", symlinks=True)
        points.at(kill)
        with pytest.raises(Killed):
            _publish(folder, 8, keep=1)
        files = _files(folder)
        seen = {name: text for name, text in files.items() if Path(name).parts[0] in ("current", files["current"])}
        assert seen in (old, new), kill
        points.at(None)
        _publish(folder, 8, keep=1)
        assert _files(folder) == new, kill


def test_something_else_in_the_place_of_the_link_is_refused(tmp_path):
    (tmp_path / "current").mkdir()
    with pytest.raises(ValueError, match=r"publish\.folder: .*current is no link to a publication"):
        current(tmp_path)
    assert current(tmp_path / "elsewhere") is None
