"""Which files are meant, and what is in them whatever their names say."""

import bz2
import gzip
import lzma
import os
import threading
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from dist_imsr.data.input_files import find_files, open_input

TEXT = b"user,item,time\na,b,1600000000\n"


def packed(folder: Path) -> dict[str, Path]:
    contents = {
        "plain": TEXT,
        "gzip": gzip.compress(TEXT[:9]) + gzip.compress(TEXT[9:]),
        "bz2": bz2.compress(TEXT),
        "xz": lzma.compress(TEXT),
        "zstd": pa.compress(TEXT, codec="zstd", asbytes=True),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(folder / "zip", "w") as archive:
        archive.writestr("logs/log.csv", TEXT)
    return {name: folder / name for name in (*contents, "zip")}


def test_compression_is_known_by_content(tmp_path: Path) -> None:
    for name, path in packed(tmp_path).items():
        file = open_input(path, tmp_path)
        assert file.compression == (None if name == "plain" else name)
        with file.open() as source:
            assert source.read() == TEXT


def test_an_archive_of_several_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "logs.zip", "w") as archive:
        archive.writestr("a.csv", TEXT)
        archive.writestr("b.csv", TEXT)
    with pytest.raises(ValueError, match=r"logs\.zip is a ZIP archive of 2 files: unpack it"):
        open_input(tmp_path / "logs.zip", tmp_path)


def test_a_pipe_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "scratch").mkdir()
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(gzip.compress(TEXT),))
    writer.start()
    file = open_input(tmp_path / "pipe", tmp_path / "scratch")
    writer.join()
    with file.open() as source:
        assert source.read() == TEXT
    assert file.name == str(tmp_path / "pipe")


def test_folders_patterns_and_lists(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "_SUCCESS", ".hidden", "deep/c.csv", "odd[1].csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(TEXT)
    names = [str(path.relative_to(tmp_path)) for path in find_files([tmp_path])]
    assert names == ["a.csv", "b.csv", "deep/c.csv", "odd[1].csv"]
    assert find_files([tmp_path / "[ab].csv"]) == [tmp_path / "a.csv", tmp_path / "b.csv"]
    assert find_files([tmp_path / "odd[1].csv"]) == [tmp_path / "odd[1].csv"]
    assert find_files([tmp_path / "b.csv", tmp_path / "a.csv"]) == [tmp_path / "b.csv", tmp_path / "a.csv"]
    with pytest.raises(ValueError, match=r"a\.csv is named twice"):
        find_files([tmp_path / "a.csv", tmp_path / "[ab].csv"])
    with pytest.raises(ValueError, match=r"x\*\.csv holds no files"):
        find_files([tmp_path / "x*.csv"])
