import hashlib
import os

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from dist_imsr.files import HashedFile, OtherFormat, check_file, check_version, write_whole


def test_a_file_is_replaced_atomically(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")
    write_whole(path, "new\n")
    assert path.read_text() == "new\n"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_an_old_file_survives_an_error(tmp_path, monkeypatch, fault):
    def fail(*_):
        raise OSError("no")

    path = tmp_path / "file"
    write_whole(path, "old")
    monkeypatch.setattr(os, fault, fail)
    with pytest.raises(OSError, match="no"):
        write_whole(path, "new")
    assert path.read_text() == "old"


@given(parts=st.lists(st.binary(max_size=50)))
def test_an_entry_describes_the_file_on_disk(tmp_path_factory, parts):
    path = tmp_path_factory.mktemp("sealed") / "file"
    with HashedFile(path) as file:
        for part in parts:
            file.write(part)
        file.write(np.arange(3.0))
    whole = b"".join(parts) + np.arange(3.0).tobytes()
    assert path.read_bytes() == whole
    assert file.entry == {"bytes": len(whole), "xxh128": xxhash.xxh3_128_hexdigest(whole)}


@pytest.mark.parametrize("kind", ["sha256", "xxh128"])
def test_files_are_checked(tmp_path, kind):
    content = bytes(range(256))
    digests = {"sha256": hashlib.sha256(content).hexdigest(), "xxh128": xxhash.xxh3_128_hexdigest(content)}
    path, manifest, entry = tmp_path / "a" / "file", tmp_path / "manifest", {"bytes": 256, kind: digests[kind]}
    path.parent.mkdir()
    path.write_bytes(content)
    check_file(manifest, "a/file", entry, checksum=True)
    for place in range(256):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        check_file(manifest, "a/file", entry, checksum=False)
        with pytest.raises(ValueError, match="a/file does not match its checksum"):
            check_file(manifest, "a/file", entry, checksum=True)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="a/file has 255 bytes instead of 256"):
        check_file(manifest, "a/file", entry, checksum=False)
    path.unlink()
    with pytest.raises(ValueError, match="a/file is missing"):
        check_file(manifest, "a/file", entry, checksum=False)


def test_names_outside_of_the_folder_are_refused(tmp_path):
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.write_bytes(b"x")
    (folder / "link").symlink_to(outside)
    for name in ("../outside", str(outside), "link"):
        with pytest.raises(ValueError, match="outside its folder"):
            check_file(folder / "manifest", name, {"bytes": 1}, checksum=False)


def test_versions(tmp_path):
    check_version(tmp_path, 2, 2)
    with pytest.raises(OtherFormat, match=r"has format 3; this version reads up to 2"):
        check_version(tmp_path, 3, 2)
    for nothing in (None, "1", 0):
        with pytest.raises(ValueError, match="no format version"):
            check_version(tmp_path, nothing, 2)
