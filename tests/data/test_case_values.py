"""Ids, times and missing values that once were misread; damaged Parquet files; outliers that need a warning."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.test_cases import (
    EXPECTED,
    LINES,
    POSITIONS,
    ROWS,
    START,
    contents,
    contents_of,
    output_of,
    prepare,
    read_back,
    refusal,
    rejected,
    write,
    write_table,
)

# Ids.


def test_ids_stay_as_they_stand(tmp_path: Path) -> None:
    users = ("u0", "u0 ", " u0", "U0", "007", "7", "7.0", "\u00a0u0")
    rows = [(users[row % 8], ("x", "x ", "00", "0")[row // 8], START + 60 * row) for row in range(32)]
    lines = ["user,item,time", *(f"{user},{item},{when}" for user, item, when in rows)]
    assert contents(write(tmp_path / "log", lines)) == contents_of(rows)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("options", [(), POSITIONS], ids=["names", "positions"])
def test_a_byte_order_mark_belongs_to_no_id(tmp_path: Path, options: tuple, encoding: str) -> None:
    lines = LINES[1:] if options else LINES
    (tmp_path / "log").write_bytes("\n".join(lines).encode(encoding))
    assert contents(tmp_path / "log", *options) == EXPECTED


# Times of Parquet, and the order within a second.


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Shanghai"])
def test_every_timestamp_of_parquet(tmp_path: Path, unit: str, zone: str | None) -> None:
    times = pa.array([when for *_, when in ROWS]).cast(pa.timestamp("s")).cast(pa.timestamp(unit)).cast(pa.int64())
    path = write_table(tmp_path / "log", times.cast(pa.timestamp(unit, zone)))
    assert contents(path, source="parquet") == EXPECTED


def test_old_timestamps_and_dates_of_parquet(tmp_path: Path) -> None:
    times = pa.array([when * 10**9 for *_, when in ROWS]).cast(pa.timestamp("ns"))
    path = write_table(tmp_path / "int96", times, use_deprecated_int96_timestamps=True)
    assert contents(path, source="parquet") == EXPECTED
    days = [(user, item, 86400 * (18000 + row)) for row, (user, item, _) in enumerate(ROWS)]
    for kind in (pa.date32(), pa.date64()):
        stamps = pa.array([when for *_, when in days]).cast(pa.timestamp("s"))
        path = write_table(tmp_path / str(kind).partition("[")[0], stamps.cast(kind))
        assert contents(path, source="parquet") == contents_of(days)


TENTHS = (6, 2, 4, 0)  # the order in the file of four events within a second
SECONDS = [START + 60 * (row // 4) for row in range(16)]
ORDERED = {"u0": [(f"i{row // 4 * 10 + tenth}", SECONDS[row]) for row in range(0, 16, 4) for tenth in sorted(TENTHS)]}


def tenths() -> list[tuple[str, int, int]]:
    """Item, second and tenth of a second, in the file's order."""
    return [(f"i{row // 4 * 10 + TENTHS[row % 4]}", SECONDS[row], TENTHS[row % 4]) for row in range(16)]


def _iso(second: int, tenth: int, zone: str) -> str:
    moment = datetime.fromtimestamp(second + (8 * 3600 if "+08" in zone else 0), UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{tenth}{zone}"


TEXTS: dict[str, Any] = {
    "fractions": lambda second, tenth: f"{second}.{tenth}",
    "long fractions": lambda second, tenth: f"{second}.00000{tenth}",
    "almost the next second": lambda second, tenth: f"{second}.{tenth}99999999" if tenth else f"{second}",
    "ISO": lambda second, tenth: _iso(second, tenth, ""),
    "ISO in UTC": lambda second, tenth: _iso(second, tenth, "Z"),
    "ISO with a zone": lambda second, tenth: _iso(second, tenth, "+08:00"),
    "ISO with a blank": lambda second, tenth: _iso(second, tenth, "").replace("T", " "),
    "ms": lambda second, tenth: f"{second}{tenth}00",
    "us": lambda second, tenth: f"{second}{tenth}00000",
    "ns": lambda second, tenth: f"{second}{tenth}00000000",
    "ns apart": lambda second, tenth: f"{second}00000000{tenth}",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_order_within_a_second(tmp_path: Path, kind: str) -> None:
    lines = [f"u0,{item},{TEXTS[kind](second, tenth)}" for item, second, tenth in tenths()]
    assert contents(write(tmp_path / "log", ["user,item,time", *lines])) == ORDERED
    texts = [TEXTS[kind](second, tenth) for _, second, tenth in tenths()]
    _write_events(tmp_path / "texts", pa.array(texts))
    assert contents(tmp_path / "texts", source="parquet") == ORDERED


def _write_events(path: Path, times: pa.Array) -> None:
    pq.write_table(pa.table({"user": ["u0"] * 16, "item": [item for item, *_ in tenths()], "time": times}), path)


@pytest.mark.parametrize(
    "kind", [pa.float64(), pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.timestamp("ns"), "int"]
)
def test_order_within_a_second_of_parquet(tmp_path: Path, kind: Any) -> None:
    if kind == pa.float64():
        times = pa.array([second + tenth / 10 for _, second, tenth in tenths()])
    else:
        thousandths = pa.array([second * 1000 + tenth * 100 for _, second, tenth in tenths()])
        times = thousandths if kind == "int" else thousandths.cast(pa.timestamp("ms")).cast(kind)
    _write_events(tmp_path / "log", times)
    assert contents(tmp_path / "log", source="parquet") == ORDERED


def test_nanoseconds_order_and_ties_keep_the_order_of_the_file(tmp_path: Path) -> None:
    _write_events(tmp_path / "ns", pa.array([s * 10**9 + t for _, s, t in tenths()]).cast(pa.timestamp("ns", "UTC")))
    assert contents(tmp_path / "ns", source="parquet") == ORDERED
    lines = [f"u0,{item},{second}.5" for item, second, _ in tenths()]
    found = contents(write(tmp_path / "ties", ["user,item,time", *lines]))
    assert found == {"u0": [(item, second) for item, second, _ in tenths()]}


# Damaged Parquet.


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_page_of_zeros_is_refused(tmp_path: Path, column: int, compression: str) -> None:
    path = write_table(tmp_path / "log", None, compression=compression)
    chunk = pq.read_metadata(path).row_group(0).column(column)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 24] = bytes(24)
    path.write_bytes(data)
    refusal(path, source="parquet")


@pytest.mark.parametrize("damage", ["cut", "no footer", "zeros in the footer", "empty", "text", "only the mark"])
def test_what_is_no_parquet_is_refused(tmp_path: Path, damage: str) -> None:
    path = write_table(tmp_path / "log", None)
    data = path.read_bytes()
    damaged = {
        "cut": data[: len(data) // 2],
        "no footer": data[:-8],
        "zeros in the footer": data[:-300] + bytes(280) + data[-20:],
        "empty": b"",
        "text": "\n".join(LINES).encode(),
        "only the mark": b"PAR1",
    }
    path.write_bytes(damaged[damage])
    refusal(path, source="parquet")


# Dates as numbers, and units.

DAYS = [f"2015{month:02d}{day:02d}" for month in (5, 6, 7, 9) for day in (1, 11, 28)]
DAY_ROWS = [(f"u{row % 2}", f"i{row % 5}", day) for row, day in enumerate(DAYS)]
DAY_CONTENTS = contents_of(
    [(user, item, int(datetime.strptime(f"{day}+0000", "%Y%m%d%z").timestamp())) for user, item, day in DAY_ROWS]
)


def test_dates_as_numbers(tmp_path: Path) -> None:
    lines = ["user,item,time", *(f"{user},{item},{day}" for user, item, day in DAY_ROWS)]
    assert contents(write(tmp_path / "log", lines)) == DAY_CONTENTS
    assert contents(write(tmp_path / "stated", lines), "--time_unit", "%Y%m%d") == DAY_CONTENTS
    path = write(tmp_path / "bad", [*lines[:4], "u0,i0,20150231", *lines[4:]])
    assert contents(path, "--max_bad_fraction", 0.1) == DAY_CONTENTS
    assert [row["line"] for row in rejected(path)] == [5]
    seconds = contents(write(tmp_path / "seconds", lines), "--time_unit", "s")
    assert seconds == contents_of([(user, item, int(day)) for user, item, day in DAY_ROWS])


def test_dates_of_a_time_zone(tmp_path: Path) -> None:
    lines = ["user,item,time", *(f"{user},{item},{day}" for user, item, day in DAY_ROWS)]
    found = contents(write(tmp_path / "log", lines), "--time_zone", "Asia/Shanghai", "--until", "2015-09-28")
    expected = {user: [(item, when - 8 * 3600) for item, when in rows] for user, rows in DAY_CONTENTS.items()}
    last = max(when for rows in expected.values() for _, when in rows)  # of 2015-09-28 in Shanghai
    assert found == {user: [row for row in rows if row[1] < last] for user, rows in expected.items()}


@pytest.mark.parametrize("kind", [pa.int32(), pa.int64(), pa.string()])
def test_dates_as_numbers_of_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    users, items, days = zip(*DAY_ROWS, strict=True)
    times = pa.array(days) if kind == pa.string() else pa.array([int(day) for day in days], kind)
    pq.write_table(pa.table({"user": users, "item": items, "time": times}), tmp_path / "log")
    assert contents(tmp_path / "log", source="parquet") == DAY_CONTENTS


def test_two_units_in_one_column_are_refused(tmp_path: Path) -> None:
    mixed = [f"{user},{item},{when * (1000 if row % 2 else 1)}" for row, (user, item, when) in enumerate(ROWS)]
    refusal(write(tmp_path / "log", [LINES[0], *mixed]))


# Outliers of time, and missing ids.


def test_one_time_zero_is_pointed_out(tmp_path: Path) -> None:
    status, errors = prepare(write(tmp_path / "log", [*LINES, "u0,i1,0"]))
    assert status == 0
    assert any("--from" in line for line in errors.splitlines())
    assert read_back(output_of(tmp_path / "log"))["u0"] == [("i1", 0), *EXPECTED["u0"]]
    path = write(tmp_path / "cut", [*LINES, "u0,i1,0"])
    status, errors = prepare(path, "--from", "2020-01-01")
    assert status == 0
    assert "--from" not in errors
    assert read_back(output_of(path)) == EXPECTED


def test_one_late_time_is_pointed_out(tmp_path: Path) -> None:
    status, errors = prepare(write(tmp_path / "log", [*LINES, "u0,i1,4000000000"]))
    assert status == 0
    assert any("--until" in line for line in errors.splitlines())
    path = write(tmp_path / "cut", [*LINES, "u0,i1,4000000000"])
    assert contents(path, "--until", "2030-01-01") == EXPECTED


def test_usual_times_are_not_pointed_out(tmp_path: Path) -> None:
    _, errors = prepare(write(tmp_path / "log", LINES))
    assert "--from" not in errors
    assert "--until" not in errors


def anonymous(text: str) -> list[str]:
    """Every other row without a user."""
    return [LINES[0], *(f"{text if row % 2 else user},{item},{when}" for row, (user, item, when) in enumerate(ROWS))]


def test_a_user_with_a_large_share_is_pointed_out(tmp_path: Path) -> None:
    status, errors = prepare(write(tmp_path / "log", anonymous("NA")))
    assert status == 0
    assert any("NA" in line and "50" in line for line in errors.splitlines())
    even = [f"member{row % 30},i{row % 7},{START + row * 60}" for row in range(120)]
    status, errors = prepare(write(tmp_path / "even", [LINES[0], *even]))
    assert status == 0
    assert "member" not in errors


@pytest.mark.parametrize(("text", "stated"), [("NA", "[NA]"), ("NULL", "[NA,NULL]"), ("-", "['-']")])
def test_texts_that_mean_a_missing_id(tmp_path: Path, text: str, stated: str) -> None:
    known = contents_of([row for number, row in enumerate(ROWS) if number % 2 == 0])
    options = ("--null_values", stated)
    path = write(tmp_path / "log", anonymous(text))
    assert "empty id" in refusal(path, *options)
    assert contents(path, *options, "--max_bad_fraction", 0.5) == known
    assert {(row["line"], row["reason"]) for row in rejected(path)} == {(line, "empty id") for line in range(3, 26, 2)}
    users = [text if row % 2 else user for row, (user, _, _) in enumerate(ROWS)]
    _, items, times = zip(*ROWS, strict=True)
    pq.write_table(pa.table({"user": users, "item": items, "time": times}), tmp_path / "parquet")
    assert contents(tmp_path / "parquet", *options, "--max_bad_fraction", 0.5, source="parquet") == known


def test_a_missing_item_and_a_null_that_is_only_part_of_an_id(tmp_path: Path) -> None:
    path = write(tmp_path / "log", [*LINES, "u0,NA,1600000000", "u0,NAB,1600090000"])
    found = contents(path, "--null_values", "[NA]", "--max_bad_fraction", 0.1)
    assert found == EXPECTED | {"u0": [*EXPECTED["u0"], ("NAB", 1600090000)]}
    assert [(row["line"], row["reason"]) for row in rejected(path)] == [(26, "empty id")]
