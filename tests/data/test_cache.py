"""Copies of remote files: checked, shared, and removed when the folder is full."""

import hashlib
import mmap
import os
import threading
import time

import pytest

from dist_imsr.data.cache import Cache, CacheOptions


def contents(number, size=1000):
    return number.to_bytes(4, "big") * (size // 4)


class Files:
    """Remote files, of which it counts how often each is fetched."""

    def __init__(self, folder, limit="1TB"):
        self.cache = Cache(CacheOptions(cache=folder, cache_limit=limit))
        self.fetched = []

    def open(self, number, sent=None, before=lambda: None):
        data = contents(number)

        def blocks():
            self.fetched.append(number)
            before()
            whole = data if sent is None else sent
            yield from (whole[:300], whole[300:])

        return self.cache.open(f"s3://b/{number}", hashlib.sha256(data).hexdigest(), len(data), blocks)

    def read(self, number):
        descriptor = self.open(number)
        try:
            return os.pread(descriptor, 2000, 0)
        finally:
            os.close(descriptor)

    def path(self, number):
        return self.cache.path(hashlib.sha256(contents(number)).hexdigest())

    def kept(self):
        return {number for number in range(20) if self.path(number).exists()}


def test_files_are_fetched_once(tmp_path):
    files = Files(tmp_path)
    assert [files.read(number) for number in (1, 2, 1, 2)] == [contents(number) for number in (1, 2, 1, 2)]
    assert Files(tmp_path).read(1) == contents(1)
    assert files.fetched == [1, 2]


def test_the_least_recently_used_files_are_removed(tmp_path):
    files = Files(tmp_path, "5000 B")
    for number in (0, 1, 2, 3, 0, 4):  # full
        files.read(number)
        time.sleep(0.01)  # file systems have clocks of a few milliseconds
    assert files.kept() == {0, 1, 2, 3, 4}
    files.read(5)
    assert files.kept() == {3, 0, 4, 5}  # 0.9 of the limit
    files.path(3).unlink()  # by hand
    for number in (6, 7, 8, 9, 10, 11):
        files.read(number)
        assert sum(path.stat().st_size for path in tmp_path.glob("files/*/*")) <= 5000
    assert files.read(0) == contents(0)


def test_open_files_stay(tmp_path, caplog):
    files = Files(tmp_path, "2000 B")
    opened = [files.open(number) for number in range(3)]
    assert files.kept() == {0, 1, 2}
    assert "the files that are open need more than the limit" in caplog.text
    mapped = mmap.mmap(opened[0], 0, access=mmap.ACCESS_READ)
    for descriptor in opened:
        os.close(descriptor)
    files.read(3)
    assert files.kept() == {0, 3}
    assert bytes(mapped) == contents(0)
    mapped.close()
    files.read(4)
    assert files.kept() == {4}


def test_a_map_outlives_its_file(tmp_path):
    files = Files(tmp_path)
    descriptor = files.open(1)
    mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    os.close(descriptor)
    files.path(1).unlink()  # by hand
    assert files.read(1) == bytes(mapped) == contents(1)
    assert files.fetched == [1, 1]


@pytest.mark.parametrize("damage", ["byte", "length"])
def test_damaged_copies_are_fetched_again(tmp_path, damage, monkeypatch, caplog):
    files = Files(tmp_path)
    files.read(1)
    data = contents(1)
    files.path(1).write_bytes(data[:-1] if damage == "length" else data[:-1] + b"x")
    monkeypatch.setattr(Cache, "_checked", {})  # as in another process
    assert Files(tmp_path).read(1) == data
    assert "is damaged, and is fetched again" in caplog.text


@pytest.mark.parametrize("sent", [contents(2), contents(1)[:-1], contents(1) + b"x"])
def test_wrong_contents_are_refused(tmp_path, sent):
    files = Files(tmp_path)
    with pytest.raises(ValueError, match=r"^s3://b/1 does not match its checksum$"):
        files.open(1, sent)
    assert not list(tmp_path.glob("files/*/*"))
    assert files.read(1) == contents(1)


def test_one_fetches_and_the_others_wait(tmp_path):
    files, found = Files(tmp_path), []

    def work():
        found.append(os.fstat(files.open(1, before=lambda: time.sleep(0.3))).st_ino)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(set(found)) == 1
    assert len(found) == 6
    assert files.fetched == [1]


def test_what_a_killed_process_left_is_written_over(tmp_path):
    files = Files(tmp_path, "2500 B")
    for number in (1, 2):
        partial = files.path(number).with_name(files.path(number).name + ".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(b"x" * 1000)
    (tmp_path / "bytes").write_text("2000")
    assert files.read(1) == contents(1)
    assert files.read(3) == contents(3)
    assert len(list(tmp_path.glob("files/*/*"))) == 2


def test_a_failed_fetch_leaves_nothing(tmp_path):
    def fail():
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        Files(tmp_path).open(1, before=fail)
    assert not list(tmp_path.glob("files/*/*"))


def test_a_disk_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"cache: {tmp_path / 'file'} cannot be written: "):
        Files(tmp_path / "file").read(1)
