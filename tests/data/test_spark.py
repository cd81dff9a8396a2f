"""Spark writes the files that DuckDB writes, byte for byte, from the same logs; what it does not read is refused."""

import contextlib
import gzip
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dist_imsr.data.prepare import PrepareConfig, prepare
from dist_imsr.data.raw_formats import TAOBAO_WINDOW
from dist_imsr.data.spark_session import SparkConfig
from tests.kills import contents

pytestmark = [pytest.mark.spark, pytest.mark.timeout(900)]
START, DAY = 1_600_041_600, 86_400  # a midnight in UTC
Row = tuple[int, int, int]  # user, item, time


@contextlib.contextmanager
def running_session(**environment: str) -> Iterator[None]:
    """A session for many preparations, which find it running.

    Args:
        environment: of the tasks.
    """
    from pyspark.sql import SparkSession

    settings = {"spark.sql.shuffle.partitions": "3", "spark.ui.enabled": "false", "spark.driver.memory": "1g"}
    settings |= {f"spark.executorEnv.{name}": value for name, value in environment.items()}
    session = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    yield
    session.stop()


@pytest.fixture(scope="module", autouse=True)
def _session() -> Iterator[None]:
    with running_session():
        yield


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dist_imsr.data.pieces._PIECE", 3000)


def drawn(rows: int, start: int = START, length: int = 6 * DAY, seed: int = 0) -> list[Row]:
    """Interactions in no order, many of them in one second."""
    draw = random.Random(seed)
    return [
        (int(40 * draw.random() ** 2), int(60 * draw.random() ** 2), start + 60 * draw.randrange(length // 60))
        for _ in range(rows)
    ]


def run(engine: str, **options: Any) -> dict[str, Any]:
    shared = {} if "append" in options else {"buckets": 5, "min_interactions": 2, "max_bad_fraction": 0.2}
    return prepare(PrepareConfig(engine=engine, threads=1, **shared | options), Console(quiet=True))


def both(folder: Path, **options: Any) -> dict[str, Any]:
    """Prepares a log with both engines, whose files must be the same; returns the manifest."""
    manifests = [run(engine, output=folder / engine, **options) for engine in ("duckdb", "spark")]
    assert contents(folder / "spark") == contents(folder / "duckdb")
    assert not [path for path in folder.rglob(".*") if path.name != ".lock"]
    assert manifests[0] == manifests[1]
    return manifests[1]


def iso(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat().replace("+00:00", "Z")


def taobao(user: int, item: int, when: int) -> str:
    return f"{user},{item},7,{'pv' if item % 5 else 'buy'},{when - START + TAOBAO_WINDOW[0]}"


def tmall_lines(rows: Sequence[Row]) -> list[str]:
    header = "user_id,item_id,cat_id,seller_id,brand_id,time_stamp,action_type"
    return [header, *(f"{u},{i},1,1,1,{511 + (t - START) // DAY:04d},{i % 4}" for u, i, t in rows)]


def lines_of(source: str, rows: Sequence[Row]) -> list[str]:
    header: dict[str, list[str]] = {
        "movielens": ["userId,movieId,rating,timestamp"],
        "recbole": ["user_id:token\titem_id:token\ttimestamp:float"],
        "csv": ["time;item;user"],
    }
    line: dict[str, Callable[[int, int, int], str]] = {
        "taobao": taobao,
        "amazon": lambda u, i, t: f"A{u},{i:010d},4.0,{t}",
        "movielens": lambda u, i, t: f"{u},{i},3.5,{t}",
        "recbole": lambda u, i, t: f"u{u}\t{i}\t{t}.0",
        "yelp": lambda u, i, t: json.dumps(
            {"user_id": f"é{u}", "business_id": f"b{i}", "stars": i % 5, "date": iso(t)[:19].replace("T", " ")}
        ),
        "gowalla": lambda u, i, t: f"{u}\t{iso(t)}\t1.5\t-2.5\t{i}",
        "csv": lambda u, i, t: f"{t};i{i};u{u}",
    }
    if source == "tmall":
        return tmall_lines(rows)
    return header.get(source, []) + [line[source](*row) for row in rows]


BROKEN = ["nothing", "", ",,,,", '{"user_id": 1', "1,2,3,pv,soon", "\t\t\t\t", "2020-01-01;;u1", "a\rb"]


def write(path: Path, lines: Sequence[str], broken: Sequence[str] = BROKEN) -> Path:
    """Writes lines, with broken ones among them."""
    draw, mixed = random.Random(1), list(lines)
    for line in broken:
        mixed.insert(draw.randrange(len(lines) // 2, len(mixed)), line)
    path.write_bytes("\n".join(mixed).encode())
    return path


@pytest.mark.parametrize("source", ["taobao", "amazon", "movielens", "recbole", "tmall", "yelp", "gowalla", "csv"])
def test_sources(tmp_path: Path, source: str) -> None:
    log = write(tmp_path / "log", lines_of(source, drawn(400)))
    options: dict[str, Any] = {"spans": 2} if source == "tmall" else {}
    manifest = both(tmp_path, source=source, input=log, **options)
    [record] = manifest["preparations"]
    assert record["rejected"]
    assert manifest["spans"][-1]["interactions"]


def test_files_that_are_written_in_many_ways(tmp_path: Path) -> None:
    rows, folder = drawn(900), tmp_path / "logs"
    rows += [row for row in rows if not row[1] % 7]
    folder.mkdir()
    lines = [lines_of("csv", rows[part::3]) for part in range(3)]
    write(folder / "a.csv", lines[0], [*BROKEN, "5;i1;u1"])
    (folder / "b.csv.gz").write_bytes(gzip.compress("\r\n".join(lines[1]).encode()))
    cells = [one.split(";") for one in lines[2][1:]]
    ends = ["\n" if number % 40 == 7 else "" for number in range(len(cells))]
    quoted = [f'{when};"{item};""{end}";{user}' for (when, item, user), end in zip(cells, ends, strict=True)]
    write(folder / "c.csv", [lines[2][0], *quoted, '7;"open;u1'])
    options = {"from_": START + DAY, "until": START + 5 * DAY, "drop_repeats": "same_time", "min_users_per_item": 3}
    manifest = both(tmp_path, source="csv", input=folder, null_values=["u7"], **options)
    [record] = manifest["preparations"]
    assert {"before from", "until and later", "repeats", "rare"} <= record["left_out"].keys()
    assert {"broken quotes", "empty id"} <= record["rejected"].keys()
    assert len(pq.read_table(tmp_path / "spark" / "rejected" / "0000.parquet")) > 10


def test_parquet(tmp_path: Path) -> None:
    users, items, times = zip(*drawn(1500), strict=True)
    parts = pa.array([time + user % 4 / 4 for user, time in zip(users, times, strict=True)])
    nothing = [None if user == 3 else user for user in users]
    titles = [f"title of {item}" if user % 2 else "" for user, item in zip(users, items, strict=True)]
    table = pa.table({"user": pa.array(nothing, pa.int32()), "item": items, "time": parts, "title": titles})
    for name, half in (("a", table.slice(0, 1000)), ("b", table.slice(1000))):
        path = tmp_path / f"source={name}" / "log.parquet"
        path.parent.mkdir()
        pq.write_table(half, path, row_group_size=150)
    columns = PrepareConfig(source="parquet", output=tmp_path / "none").columns
    columns.title = "title"
    every = {"span_every": "1d", "pretrain_until": "2020-09-16", "time_zone": "Asia/Shanghai"}
    inputs = [tmp_path / "source=a", tmp_path / "source=b"]
    both(tmp_path, source="parquet", input=inputs, columns=columns, drop_repeats="all", count_users="so_far", **every)
    assert pq.read_table(tmp_path / "spark" / "titles" / "0000.parquet").num_rows > 20


def test_complete_journey(tmp_path: Path) -> None:
    users, items, times = zip(*drawn(300), strict=True)
    stamps = pa.array([time * 10**6 for time in times], pa.timestamp("us"))
    table = pa.table({"household_id": users, "product_id": items, "transaction_timestamp": stamps})
    pq.write_table(table, tmp_path / "log.parquet")
    both(tmp_path, source="complete-journey", input=tmp_path / "log.parquet")


def test_appends_on_either_engine(tmp_path: Path) -> None:
    logs = [
        write(
            tmp_path / f"{day}.csv", lines_of("csv", drawn(250, START + day * 2 * DAY - (day > 0) * 3600, 2 * DAY, day))
        )
        for day in range(3)
    ]
    options = {"source": "csv", "span_every": "1d", "pretrain_until": START + DAY, "count_users": "so_far"}
    found = []
    for engines in (("duckdb",) * 3, ("duckdb", "spark", "duckdb"), ("spark", "duckdb", "spark")):
        data = tmp_path / "-".join(engines)
        run(engines[0], output=data, input=logs[0], until=START + 2 * DAY, min_interactions=12, **options)
        for number, engine in enumerate(engines[1:], 1):
            until = START + (number + 1) * 2 * DAY
            run(engine, append=data, input=logs[number], until=until, late="into_next", max_bad_fraction=0.5)
        found.append(contents(data))
    assert all(one == found[0] for one in found[1:])
    assert pq.read_table(tmp_path / "spark-duckdb-spark" / "waiting" / "span=5.parquet").num_rows


def test_late_rows(tmp_path: Path) -> None:
    rows = drawn(200)
    log = write(tmp_path / "log.csv", lines_of("csv", rows), [])
    later = [*drawn(100, START + 6 * DAY, DAY, 1), *rows[:30], *drawn(30, START, DAY, 2)]
    following = write(tmp_path / "next.csv", lines_of("csv", later), [])
    manifests = []
    for engine in ("duckdb", "spark"):
        data = tmp_path / engine
        run(engine, output=data, source="csv", input=log, spans=2)
        options = {"late": "into_next", "span_edges": [START + 7 * DAY], "max_bad_fraction": 0.5}
        manifests.append(run(engine, append=data, input=following, **options))
    assert contents(tmp_path / "spark") == contents(tmp_path / "duckdb")
    assert manifests[1]["preparations"][1]["rejected"]["already in the data"] >= 30


def refused(tmp_path: Path, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        run("spark", output=tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "source: drift is generated on one machine: use --engine duckdb", source="drift")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path, "input: .*pipe is no regular file", source="csv", input=tmp_path / "pipe")
    table = pa.table({"user": pa.array([1], pa.uint64()), "item": [1], "time": [START]})
    pq.write_table(table, tmp_path / "log.parquet")
    refused(tmp_path, "columns.user: .*UBIGINT, which Spark has not", source="parquet", input=tmp_path / "log.parquet")
    bad = write(tmp_path / "bad.csv", lines_of("csv", drawn(20)))
    refused(tmp_path, "bad.csv: .* rows are bad", source="csv", input=bad, max_bad_fraction=0.0)
    with pytest.raises(ValueError, match=r"spark: .*none but with --engine spark"):
        PrepareConfig(source="csv", output=tmp_path / "out", spark=SparkConfig(master="local"))
    with pytest.raises(ValueError, match=r"spark.conf: .*spark.KEY=VALUE"):
        SparkConfig(conf=["executor.memory=1g"])
