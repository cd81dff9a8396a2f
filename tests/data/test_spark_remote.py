"""Spark reads from and writes to an S3 server what DuckDB reads from and writes to the disk."""

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_imsr.addresses import Address
from dist_imsr.data import claims
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.prepare import PrepareConfig
from dist_imsr.data.remote import RemoteFolder
from dist_imsr.data.sources import ColumnsConfig
from tests.data.test_remote import DAY, START, log, on_disk, place, quietly, rows, same, store
from tests.data.test_spark import _small_pieces, drawn, lines_of, running_session, write
from tests.object_store import ENVIRONMENT, ObjectStore

__all__ = ["_small_pieces", "place", "store"]  # fixtures
pytestmark = [pytest.mark.spark, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def _session() -> Iterator[None]:
    with running_session(**ENVIRONMENT):
        yield


def first(engine: str, raw: Any, output: Any, tmp_path: Path, **changes: Any) -> None:
    options: dict[str, Any] = {"min_interactions": 2, "buckets": 3, "span_every": "1d", "source": "csv"}
    options |= {"pretrain_until": START + 2 * DAY, "count_users": "so_far", "cache": tmp_path / "cache", "threads": 1}
    quietly(PrepareConfig(engine=engine, input=raw, output=output, **options | changes))  # type: ignore[arg-type]


def append(engine: str, source: Any, data: Any, tmp_path: Path, **changes: Any) -> None:
    quietly(PrepareConfig(engine=engine, append=data, input=source, cache=tmp_path / "cache", threads=1, **changes))  # type: ignore[arg-type]


def test_data_in_a_store_are_those_of_the_disk(store: ObjectStore, place: str, tmp_path: Path) -> None:
    source = titled(tmp_path / "first.csv", range(4))
    store.put(f"{place}/logs/a.csv", source.read_bytes())
    address, logs = store.address(f"{place}/data"), store.address(f"{place}/logs")
    columns = ColumnsConfig(title="name")
    first("duckdb", source, tmp_path / "data", tmp_path, columns=columns)
    first("spark", logs, address, tmp_path, columns=columns)
    manifest = (tmp_path / "data" / "dataset.json").read_bytes()
    there = store.files(f"{place}/data")
    assert there.pop("dataset.json").replace(f"{store.address(place)}".encode(), b"") != manifest  # names the address
    assert there == {name: data for name, data in on_disk(tmp_path / "data").items() if name != "dataset.json"}
    users = tmp_path / "users.txt"
    users.write_text("u3\nonce1\n")
    with pytest.raises(ValueError, match="exists; choose another"):
        first("spark", source, address, tmp_path)
    with pytest.raises(ValueError, match="overwrite: --engine spark replaces no remote data"):
        first("spark", source, address, tmp_path, overwrite=True)
    address = store.address(f"{place}/again")
    store.put(f"{place}/again/.changing/x.json", json.dumps(claims._process(1) | {"started": "none"}).encode())
    store.put(f"{place}/again/span=9/bucket=000.arrow", b"of a run that was killed")
    first("spark", source, address, tmp_path, columns=columns)
    same(store, f"{place}/again", tmp_path / "data")
    for number, days in enumerate((range(4, 5), range(5, 7))):
        later = titled(tmp_path / f"later-{number}.csv", [*days, 3])
        options: dict[str, Any] = {"late": "into_next", "max_bad_fraction": 0.9}
        options |= {"forget_users": users, "retire_before": 1} if number else {}
        append("duckdb", later, tmp_path / "data", tmp_path, **options)
        append("spark", later, address, tmp_path, **options)
        same(store, f"{place}/again", tmp_path / "data")
    Dataset(DataConfig(address, cache=tmp_path / "cache", verify=True))


def titled(path: Path, days: Iterable[int]) -> Path:
    """A log with titles of items."""
    path.write_text("user,item,time,name\n" + "".join(f"{row.strip()},title {row[:2]}\n" for row in rows(days)))
    return path


def test_files_are_read_in_parts(store: ObjectStore, place: str, tmp_path: Path) -> None:
    lines = lines_of("csv", drawn(600))
    folder = tmp_path / "logs"
    folder.mkdir()
    write(folder / "a.csv", lines[:300])
    (folder / "b.csv.gz").write_bytes(gzip.compress("\n".join([lines[0], *lines[300:450]]).encode()))
    write(folder / "c.csv", [lines[0], *(f'{line};"x"'.replace(';"x"', "") for line in lines[450:])], ['5;"open;u1'])
    store.put_folder(folder, f"{place}/logs")
    compare(store, place, tmp_path, source="csv", pretrain_until=START + 2 * DAY, max_bad_fraction=0.2)


def test_row_groups_are_read_alone(store: ObjectStore, place: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("dist_imsr.data.pieces._PIECE", 6000)
    users, items, times = zip(*drawn(1500), strict=True)
    nothing = [None if user == 3 else f"user {user}" for user in users]
    (tmp_path / "logs").mkdir()
    stamps = pa.array([time * 10**9 for time in times], pa.timestamp("ns"))
    table = pa.table({"time": stamps, "user": nothing, "item": pa.array(items, pa.int16())})
    options: dict[str, Any] = {"row_group_size": 150, "use_deprecated_int96_timestamps": True}
    pq.write_table(table, tmp_path / "logs" / "a.parquet", **options)
    store.put_folder(tmp_path / "logs", f"{place}/logs")
    compare(store, place, tmp_path, source="parquet", max_bad_fraction=0.2)


def compare(store: ObjectStore, place: str, tmp_path: Path, **options: Any) -> None:
    """Prepares logs of the disk with DuckDB, and those of the store with Spark, to the disk."""
    first("duckdb", tmp_path / "logs", tmp_path / "duckdb", tmp_path, **options)
    first("spark", store.address(f"{place}/logs"), tmp_path / "spark", tmp_path, **options)
    there, here = on_disk(tmp_path / "spark"), on_disk(tmp_path / "duckdb")
    for name in ("dataset.json", "rejected/0000.parquet"):  # name the files
        assert there.pop(name) != here.pop(name)
    assert there == here
    rejected = [
        pq.read_table(tmp_path / engine / "rejected" / "0000.parquet").drop_columns("file")
        for engine in ("duckdb", "spark")
    ]
    assert rejected[0].equals(rejected[1])
    assert len(rejected[0])


def test_names_are_read_as_they_are(store: ObjectStore, place: str, tmp_path: Path) -> None:
    lines = lines_of("csv", drawn(300))
    for number, name in enumerate(("shop=a%20b/p%20q.csv", "shop=ü n/x[1].csv", "shop=c/100%.csv")):
        path = tmp_path / "logs" / name
        path.parent.mkdir(parents=True)
        write(path, [lines[0], *lines[1 + number :: 3]], ["bad"])
    store.put_folder(tmp_path / "logs", f"{place}/logs")
    columns = ColumnsConfig(user="shop")
    compare(store, place, tmp_path, hive=True, columns=columns, max_bad_fraction=0.2)


def test_a_failure_leaves_nothing(
    store: ObjectStore, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(folder: RemoteFolder, name: str, data: bytes) -> None:
        if name == "dataset.json":
            raise OSError("the disk of the store is full")
        write_whole(folder, name, data)

    write_whole = RemoteFolder.write
    monkeypatch.setattr(RemoteFolder, "write", failing)
    with pytest.raises(OSError, match="is full"):
        first("spark", log(tmp_path, range(4)), store.address(place), tmp_path)
    assert store.files(place) == {}


def test_a_file_that_goes_is_named(
    store: ObjectStore, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(f"{place}/log.csv", log(tmp_path, range(3)).read_bytes())
    address = store.address(f"{place}/log.csv")
    gone = Address(address.replace("log.csv", "gone.csv"))
    monkeypatch.setattr("dist_imsr.data.spark_engine.find_sources", lambda config: [address, gone])
    with pytest.raises(FileNotFoundError, match=r"gone.csv.* is missing"):
        first("spark", address, tmp_path / "out", tmp_path)


def test_what_is_refused(store: ObjectStore, place: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"temp_dir: 's3://bucket/t.*a local folder, but with --engine spark"):
        PrepareConfig(source="csv", output=tmp_path / "out", temp_dir=store.address("t"))
    with pytest.raises(ValueError, match=r"temp_dir: .*none.*; expected a folder that exists"):
        first("spark", log(tmp_path, range(3)), store.address(place), tmp_path, temp_dir=tmp_path / "none")
    with pytest.raises(ValueError, match=r"input: s3://.*none.* holds no files"):
        first("spark", store.address(f"{place}/none"), tmp_path / "out", tmp_path)
    store.put(f"{place}/log", b"user,item\n1,2\n")
    with pytest.raises(ValueError, match=rf"s3://bucket/{place}/log"):
        first("spark", store.address(f"{place}/log"), tmp_path / "out", tmp_path)
    assert store.files(place).keys() == {"log"}
