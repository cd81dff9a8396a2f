"""Prepared data and logs in an S3 server are what they are on the disk, whatever goes wrong in between."""

import gzip
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from dist_imsr.addresses import Address
from dist_imsr.data import remote
from dist_imsr.data.cache import Cache
from dist_imsr.data.claims import claimed
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.input_files import find_files
from dist_imsr.data.prepare import PrepareConfig, prepare
from dist_imsr.data.remote import RemoteFolder, Unreachable
from dist_imsr.data.sources import ColumnsConfig
from launch.prepare import main
from tests.object_store import ObjectStore
from tests.prepared import drawn_history, write_dataset

REPOSITORY = Path(__file__).parents[2]
DAY = 86_400
START = 1_600_041_600  # a midnight in UTC
USERS = 30


@pytest.fixture(scope="module")
def store():
    store = ObjectStore()
    yield store
    store.stop()


@pytest.fixture
def place(store, request):
    """A folder of the test's own in the store."""
    return request.node.name.replace("[", "-").replace("]", "").replace("_", "-")


@pytest.fixture
def fast(monkeypatch):
    """Few attempts: each takes 6 seconds, in which the AWS library has its own."""
    monkeypatch.setattr(remote, "WAITS", (0.01,))


def rows(days):
    """Lines of a log; users come back, and a few come once."""
    for day in days:
        for user in range(USERS):
            if (user + day) % 3:
                for item in range(1 + (user * 7 + day) % 5):
                    yield f"u{user},i{(user * 3 + item * day) % 40},{START + day * DAY + user * 60 + item}\n"
        yield f"once{day},i0,{START + day * DAY + DAY - 1}\n"


def log(folder, days):
    path = folder / f"{days.start}-{days.stop}.csv"
    path.write_text("user,item,time\n" + "".join(rows(days)))
    return path


def first(source, output, tmp_path, **changes):
    options = {"min_interactions": 2, "buckets": 3, "span_every": "1d", "pretrain_until": START + 2 * DAY}
    options |= {"count_users": "so_far", "threads": 1, "cache": tmp_path / "cache"}
    return quietly(PrepareConfig(source="csv", input=source, output=output, **options | changes))


def append(source, data, tmp_path, **changes):
    return quietly(PrepareConfig(append=data, input=source, threads=1, cache=tmp_path / "cache", **changes))


def quietly(config):
    return prepare(config, Console(quiet=True))


def on_disk(folder):
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name != ".lock"}


def same(store, place, folder):
    there, here = store.files(place), on_disk(folder)
    assert there.keys() == here.keys()
    assert [name for name in here if there[name] != here[name]] == []


def test_prepared_data_are_those_of_the_disk(store, place, tmp_path):
    source, address = log(tmp_path, range(4)), store.address(place)
    first(source, tmp_path / "data", tmp_path)
    first(source, address, tmp_path)
    same(store, place, tmp_path / "data")
    assert not list((tmp_path / "cache").glob("prepare-*"))
    for days in (range(4, 5), range(5, 7)):
        later = log(tmp_path, days)
        append(later, tmp_path / "data", tmp_path)
        append(later, address, tmp_path)
        same(store, place, tmp_path / "data")
    here, there = (
        Dataset(DataConfig(path, cache=tmp_path / "cache", verify=True)) for path in (tmp_path / "data", address)
    )
    assert there.digests == here.digests
    assert there.spans == 6
    for span, bucket in itertools.product(range(6), range(3)):
        assert there.sequences(span, bucket).batch.equals(here.sequences(span, bucket).batch)
    assert there.raw_ids("users", there.sequences(3, 1).users) == here.raw_ids("users", here.sequences(3, 1).users)


def test_late_rows_and_titles(store, place, tmp_path):
    early, later = tmp_path / "early.csv", tmp_path / "late.csv"
    early.write_text("user,item,time,name\n" + "".join(f"{row.strip()},title {row[:2]}\n" for row in rows(range(3))))
    old = f"u1,i2,{START + 2 * DAY + 5}\nu4,i39,{START + 2 * DAY + 7}\n"
    later.write_text(
        "user,item,time,name\n" + "".join(f"{row.strip()},x\n" for row in [*old.split(), *rows(range(3, 4))])
    )
    for output in (tmp_path / "data", store.address(place)):
        first(early, output, tmp_path, columns=ColumnsConfig(title="name"))
        append(later, output, tmp_path, late="into_next")
    same(store, place, tmp_path / "data")
    there = Dataset(DataConfig(store.address(place), cache=tmp_path / "cache"))
    assert there.titles(there.sequences(1, 0).items[:2])[0].startswith("title")


def test_users_are_forgotten_and_spans_retired(store, place, tmp_path):
    source, listed = log(tmp_path, range(5)), tmp_path / "users.txt"
    listed.write_text("u3\nonce1\nu7\n")
    for output in (tmp_path / "data", store.address(place)):
        first(source, output, tmp_path)
        quietly(PrepareConfig(append=output, forget_users=listed, cache=tmp_path / "cache"))
        quietly(PrepareConfig(append=output, retire_before=2, cache=tmp_path / "cache"))
    same(store, place, tmp_path / "data")
    assert not any(name.startswith(("span=0/bucket", "span=1/bucket")) for name in store.files(place))


def test_logs_are_read_from_addresses(store, place, tmp_path):
    lines = ["user,item,time\n", *rows(range(4))]
    local = tmp_path / "logs" / "day=1"
    local.mkdir(parents=True)
    (local / "a.csv").write_text("".join(lines[:30]))
    (local / "b.csv.gz").write_bytes(gzip.compress("".join([lines[0], *lines[30:]]).encode()))
    (local / "_SUCCESS").touch()
    (local / "c.txt").write_text("no log")
    store.put_folder(tmp_path / "logs", f"{place}/logs")
    first(tmp_path / "logs" / "day=1" / "[ab].csv*", tmp_path / "here", tmp_path)
    first(store.address(f"{place}/logs/**/[ab].csv*"), tmp_path / "there", tmp_path)
    here, there = (json.loads((tmp_path / name / "dataset.json").read_text()) for name in ("here", "there"))
    assert there["spans"] == here["spans"]
    [record] = there["preparations"]
    assert record["input"] == [store.address(f"{place}/logs/day=1/{name}") for name in ("a.csv", "b.csv.gz")]
    with pytest.raises(ValueError, match="was added already"):
        append(store.address(f"{place}/logs/day=1/a.csv"), tmp_path / "there", tmp_path)


def test_which_files_an_address_means(store, place):
    for name in ("a.csv", "x/b.csv", "x/y/c.csv", ".hidden", "x/_SUCCESS", "_temporary/d.csv"):
        store.put(f"{place}/{name}", b"1")

    def found(pattern):
        start = store.address(place).place + "/"
        return [one.place.removeprefix(start) for one in find_files([store.address(f"{place}{pattern}")])]

    assert found("") == found("/") == ["a.csv", "x/b.csv", "x/y/c.csv"]
    assert found("/a.csv") == ["a.csv"]
    assert found("/*.csv") == ["a.csv"]
    assert found("/x/*.csv") == found("/[x]/b*") == ["x/b.csv"]
    assert found("/**/*.csv") == ["_temporary/d.csv", "a.csv", "x/b.csv", "x/y/c.csv"]
    for nothing in ("/none", "/*.txt", "none"):
        with pytest.raises(ValueError, match=r"input: s3://bucket/.* holds no files"):
            found(nothing)
    with pytest.raises(ValueError, match="is named twice"):
        find_files([store.address(f"{place}/a.csv"), store.address(f"{place}/*.csv")])


def test_rejected_rows_name_the_address(store, place, tmp_path):
    store.put(f"{place}/bad.csv", ("user,item,time\nu,i,soon\n" + "".join(rows(range(2)))).encode())
    address = store.address(f"{place}/bad.csv")
    with pytest.raises(ValueError, match=f"^input: {re.escape(address)}: 1 of "):
        first(address, tmp_path / "data", tmp_path, max_bad_fraction=0)


def test_files_that_are_there_are_not_replaced(store, place, tmp_path):
    source, address = log(tmp_path, range(3)), store.address(place)
    store.put(f"{place}/letter.txt", b"mine")
    for overwrite, message in ((False, "exists; choose another"), (True, "is no prepared data set")):
        with pytest.raises(ValueError, match=message):
            first(source, address, tmp_path, overwrite=overwrite)
    assert store.files(place) == {"letter.txt": b"mine"}
    first(source, store.address(f"{place}/data"), tmp_path)
    with pytest.raises(ValueError, match="exists; choose another"):
        first(source, store.address(f"{place}/data"), tmp_path)
    first(
        log(tmp_path, range(2, 4)),
        store.address(f"{place}/data"),
        tmp_path,
        overwrite=True,
        pretrain_until=START + 3 * DAY,
    )
    first(log(tmp_path, range(2, 4)), tmp_path / "data", tmp_path, pretrain_until=START + 3 * DAY)
    same(store, f"{place}/data", tmp_path / "data")  # nothing of the first is left


KILLED = """
import itertools, os, sys
from dist_imsr.data.remote import RemoteFolder
from dist_imsr.data.sources import ColumnsConfig
from launch.prepare import main

counted, last = itertools.count(), int(sys.argv.pop(1))

def dying(method):
    def call(self, *arguments):
        if next(counted) == last:
            os.kill(os.getpid(), 9)
        return method(self, *arguments)
    return call

RemoteFolder.upload_file, RemoteFolder.write = dying(RemoteFolder.upload_file), dying(RemoteFolder.write)
sys.exit(main())
"""


def killed_at(point, *arguments):
    """Runs prepare.py in a process that is killed before its n-th write, the first of which is its claim."""
    command = [sys.executable, "-c", KILLED, str(point), *map(str, arguments)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode in (0, -9), ended.stderr
    return ended.returncode == -9


@pytest.mark.parametrize("point", [1, 13, -1])  # the last write is dataset.json
def test_what_is_killed_changes_nothing(store, place, tmp_path, point):
    early, later, address = log(tmp_path, range(4)), log(tmp_path, range(4, 6)), store.address(place)
    options = ["--source=csv", "--buckets=3", "--span_every=1d", f"--pretrain_until={START + 2 * DAY}"]
    options += ["--min_interactions=2", "--count_users=so_far", f"--cache={tmp_path / 'cache'}"]
    first(early, tmp_path / "data", tmp_path)
    files = len(on_disk(tmp_path / "data"))
    assert killed_at(point % (files + 1), f"--input={early}", f"--output={address}", *options)
    assert "dataset.json" not in store.files(place)
    assert len(store.files(place)) > 1 or point == 1
    first(early, address, tmp_path)  # removes what is left
    same(store, place, tmp_path / "data")

    append(later, tmp_path / "data", tmp_path)
    new = len(on_disk(tmp_path / "data")) - files + 1  # the waiting rows take the place of others
    before = store.files(place)
    assert killed_at(point % (new + 2), f"--input={later}", f"--append={address}", f"--cache={tmp_path / 'cache'}")
    now = store.files(place)
    assert {name: now[name] for name in before} == before
    assert Dataset(DataConfig(address, cache=tmp_path / "cache", verify=True)).spans == 3
    append(later, address, tmp_path)
    same(store, place, tmp_path / "data")


def test_one_change_at_a_time(store, place, tmp_path):
    source, address = log(tmp_path, range(3)), store.address(place)
    first(source, address, tmp_path)
    before, barrier, errors = store.files(place), threading.Barrier(2), []

    def change():
        barrier.wait()
        try:
            with claimed(RemoteFolder(address), "append"):
                barrier.wait(1)  # both are here
        except (ValueError, threading.BrokenBarrierError) as error:
            errors.append(error)

    threads = [threading.Thread(target=change) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(isinstance(error, ValueError) for error in errors)
    with claimed(RemoteFolder(address), "append"):
        for act in (
            lambda: append(log(tmp_path, range(3, 4)), address, tmp_path),
            lambda: first(source, address, tmp_path),
        ):
            with pytest.raises(
                ValueError, match=rf"another process is changing {address.place}.*process {os.getpid()}"
            ):
                act()
    assert store.files(place) == before
    append(log(tmp_path, range(3, 4)), address, tmp_path)


def test_a_data_set_that_changed_meanwhile_is_not_replaced(store, place, tmp_path, monkeypatch):
    source, address = log(tmp_path, range(3)), store.address(place)
    first(source, address, tmp_path)
    upload = RemoteFolder.upload

    def slow_upload(self, folder, names):
        upload(self, folder, names)
        manifest = json.loads(store.files(place)["dataset.json"])
        store.put(f"{place}/dataset.json", json.dumps(manifest | {"by": "another"}).encode())

    monkeypatch.setattr(RemoteFolder, "upload", slow_upload)
    with pytest.raises(ValueError, match=f"append: {address.place}.* has changed meanwhile"):
        append(log(tmp_path, range(3, 4)), address, tmp_path)
    assert json.loads(store.files(place)["dataset.json"])["by"] == "another"
    assert not any(name.startswith("span=2/") for name in store.files(place))  # leftovers go


def test_what_no_further_attempt_would_mend_is_refused_at_once(store, place, tmp_path):
    address = Address(store.address(place).replace("bucket", "nobody", 1))
    with pytest.raises(ValueError, match=r"^s3://nobody/.* cannot be written: .*NO_SUCH_BUCKET"):
        first(log(tmp_path, range(3)), address, tmp_path)
    with pytest.raises(ValueError, match=r"^s3://bucket/x\?tree=1 cannot be opened: Unexpected query parameter"):
        first(Address("s3://bucket/x?tree=1"), tmp_path / "data", tmp_path)


def test_a_failed_upload_leaves_nothing(store, place, tmp_path, monkeypatch):
    monkeypatch.setattr(RemoteFolder, "write", _failing(RemoteFolder.write, "dataset.json"))
    with pytest.raises(OSError, match="the disk of the store is full"):
        first(log(tmp_path, range(3)), store.address(place), tmp_path)
    assert store.files(place) == {}


def _failing(write, name):
    def call(self, target, data):
        if target == name:
            raise OSError("the disk of the store is full")
        write(self, target, data)

    return call


@pytest.fixture
def small(store, place, tmp_path):
    """A small data set in the store, and where the copies of its files are."""
    write_dataset(tmp_path / "data", drawn_history())
    store.put_folder(tmp_path / "data", place)
    return DataConfig(store.address(place), cache=tmp_path / "cache")


def test_opening_reads_no_rows(small):
    dataset = Dataset(small)
    kept = [path for path in small.cache.glob("files/*/*") if path.stat().st_size]
    assert len(kept) == dataset.spans  # the manifests
    assert dataset.digest_until(3) == Dataset(DataConfig(small.cache.parent / "data")).digest_until(3)
    Dataset(DataConfig(small.path, verify=True, cache=small.cache))
    assert len(list(small.cache.glob("files/*/*"))) > 30


def test_missing_and_changed_files_are_refused(small, store, place, tmp_path):
    path = "span=1/bucket=002.arrow"
    sound = store.files(place)[path]
    store.put(f"{place}/{path}", sound[:-1])
    with pytest.raises(ValueError, match=rf"^s3://bucket/{place}/{path}.* has {len(sound) - 1} bytes instead of"):
        Dataset(small)
    store.delete(f"{place}/{path}")
    with pytest.raises(ValueError, match=rf"^s3://bucket/{place}/{path}.* is missing: prepare the data again"):
        Dataset(small)
    store.put(f"{place}/{path}", sound[:-1] + bytes([sound[-1] ^ 1]))
    dataset = Dataset(small)  # sizes are right
    with pytest.raises(ValueError, match=rf"^s3://bucket/{place}/{path}.* does not match its checksum"):
        dataset.sequences(1, 2)
    with pytest.raises(ValueError, match=rf"{path}.* does not match its checksum: prepare the data again"):
        Dataset(DataConfig(small.path, cache=small.cache, verify=True))
    store.delete(f"{place}/{path}")
    with pytest.raises(ValueError, match="is gone: another command has changed the data"):
        dataset.sequences(1, 2)
    with pytest.raises(ValueError, match=rf"data.path: s3://bucket/{place}/none.* holds no dataset.json"):
        Dataset(DataConfig(store.address(f"{place}/none")))
    with pytest.raises(
        ValueError, match=r"^s3://nobody/x/dataset.json.* cannot be read.*NO_SUCH_BUCKET|holds no dataset"
    ):
        Dataset(DataConfig(type(small.path)(small.path.replace("bucket", "nobody", 1))))


def test_damaged_copies_are_fetched_again(small, monkeypatch, caplog):
    dataset = Dataset(small)
    sound = dataset.sequences(1, 2).items.copy()
    path = dataset.local("span=1/bucket=002.arrow")
    path.write_bytes(b"x" * path.stat().st_size)
    monkeypatch.setattr(Cache, "_checked", {})  # as in another process
    assert (Dataset(small).sequences(1, 2).items == sound).all()
    assert f"{path} is damaged" in caplog.text


def test_lost_connections_are_tried_again(small, store, fast, monkeypatch, caplog):
    """A server that comes back in time is no error; one that does not is named."""
    dataset = Dataset(small)
    store.stop()
    try:
        monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=lambda seconds: store.start()))
        assert len(dataset.sequences(1, 2).users)
        assert "next attempt in" in caplog.text
        store.stop()
        monkeypatch.setattr(remote, "time", SimpleNamespace(sleep=lambda seconds: None))
        with pytest.raises(Unreachable, match=rf"^{dataset.path.place}/span=1/bucket=003.arrow.* after 2 attempts"):
            dataset.sequences(1, 3)
    finally:
        store.stop()
        store.start()


def test_a_command_names_the_server_that_is_gone(store, place, tmp_path, fast, monkeypatch, capsys):
    address = store.address(place)
    first(log(tmp_path, range(3)), address, tmp_path)
    store.stop()
    try:
        arguments = [f"--input={log(tmp_path, range(3, 4))}", f"--cache={tmp_path / 'cache'}"]
        for target in (f"--append={address}", f"--output={address}"):
            monkeypatch.setattr(
                "sys.argv", ["prepare.py", target, *arguments, *["--source=csv"] * ("output" in target)]
            )
            with pytest.raises(SystemExit) as ended:
                sys.exit(main())
            assert ended.value.code == 1
            [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("prepare.py: ")]
            assert f"{address.place}/" in line
            assert "after 2 attempts" in line
    finally:
        store.start()
