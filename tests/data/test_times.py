"""Whole seconds and nanoseconds of every form of time, and the guess of its unit."""

import datetime
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_imsr.data.times import LATEST_TIME, guess_unit, instant

CONNECTION = duckdb.connect()  # one for all: opening it takes longer than a query


def of(value: str | None, kind: str, unit: str, alternatives: bool = False, zone: str = "UTC") -> tuple[Any, Any]:
    found = instant("x", kind, unit, alternatives)
    assert found is not None
    CONNECTION.execute(f"SET TimeZone = '{zone}'")
    [row] = CONNECTION.execute(f"SELECT {found[0]}, {found[1]} FROM (SELECT $1::{kind} AS x)", [value]).fetchall()
    return row


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16", (16, 0)),
        ("1600000000.123456789", (1600000000, 123456789)),
        ("1.6e9", (1600000000, 0)),
        (" 16 ", (16, 0)),
        ("0x5F5E1000", (None, None)),
        ("1_600_000_000", (None, None)),
        ("nan", (None, None)),
        ("noon", (None, None)),
        ("2017-01-01 00:00:00.123456789", (1483228800, 123456789)),
        ("2017-01-01T08:00:00+08:00", (1483228800, 0)),
        ("2017-01-01", (1483228800, 0)),
    ],
)
def test_texts_in_seconds_or_dates(text: str, expected: tuple[Any, Any]) -> None:
    assert of(text, "VARCHAR", "s", alternatives=True) == expected


@pytest.mark.parametrize("text", ["2020-12-08 05:", "2020-12-08 5:00", "2020-12-8", "epoch", "7", "12/08/2020"])
def test_what_is_no_whole_date_is_none(text: str) -> None:
    assert of(text, "VARCHAR", "iso")[0] is None


@pytest.mark.parametrize("text", ["-1", "-0.5", "-1e300"])
def test_negative_times_stay_negative(text: str) -> None:
    assert of(text, "VARCHAR", "ms")[0] < 0


@pytest.mark.parametrize("text", ["1e300", "inf", "99999999999999999999"])
def test_absurd_times_stay_absurd(text: str) -> None:
    assert of(text, "VARCHAR", "s")[0] > LATEST_TIME


@settings(max_examples=50, deadline=None)
@given(st.integers(0, LATEST_TIME * 10**9), st.sampled_from(["s", "ms", "us", "ns"]))
def test_units(nanos: int, unit: str) -> None:
    scale = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[unit]
    whole = nanos - nanos % scale
    for kind in ("VARCHAR", "BIGINT"):
        assert of(str(whole // scale), kind, unit) == divmod(whole, 10**9)


@pytest.mark.parametrize(
    ("value", "kind", "unit", "expected"),
    [
        ("20150511", "VARCHAR", "%Y%m%d", 1431302400),
        ("20150511", "INTEGER", "%Y%m%d", 1431302400),
        ("2015051", "VARCHAR", "%Y%m%d", None),
        ("11.05.2015", "VARCHAR", "%d.%m.%Y", 1431302400),
        ("2014829+0800", "VARCHAR", "%Y%m%d%z", None),
        ("2020-01-01 00:00:00.5", "TIMESTAMP_MS", "s", 1577836800),
        ("2020-01-01 00:00:00.5", "TIMESTAMP_NS", "s", 1577836800),
        ("1960-01-01", "DATE", "s", -1),
        ("18446744073709551615", "UBIGINT", "s", 2**62),
    ],
)
def test_formats_and_types(value: str, kind: str, unit: str, expected: int | None) -> None:
    assert of(value, kind, unit)[0] == expected


ZONES = ["Asia/Shanghai", "Europe/Berlin", "America/Sao_Paulo"]
STAMPS = ["TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("day", ["2018-01-20", "2018-03-26", "2018-07-01", "2018-11-04", "2018-11-05"])
def test_what_names_no_zone_is_in_the_time_zone(zone: str, day: str) -> None:
    moment = datetime.datetime.fromisoformat(f"{day} 12:34:56").replace(tzinfo=ZoneInfo(zone))
    begin = datetime.datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).timestamp()
    text, second = f"{day} 12:34:56", moment.timestamp()
    found = [of(text, kind, "s", zone=zone)[0] for kind in STAMPS]
    found += [of(text, "VARCHAR", unit, True, zone)[0] for unit in ("iso", "s", "%Y-%m-%d %H:%M:%S")]
    assert found == [second] * 7
    digits = day.replace("-", "")
    found = [of(day, "DATE", "s", zone=zone)[0], of(day, "VARCHAR", "iso", zone=zone)[0]]
    found += [of(digits, kind, "%Y%m%d", zone=zone)[0] for kind in ("VARCHAR", "INTEGER")]
    assert found == [begin] * 4


@pytest.mark.parametrize("zone", ["UTC", *ZONES])
def test_what_names_a_zone_or_counts_seconds_is_in_no_other(zone: str) -> None:
    for value, kind, unit in (
        ("2018-07-01T12:34:56Z", "VARCHAR", "iso"),
        ("2018-07-01 20:34:56+08", "VARCHAR", "iso"),
        ("2018-07-01 20:34:56 Asia/Shanghai", "VARCHAR", "iso"),
        ("01.07.2018 20:34:56 +0800", "VARCHAR", "%d.%m.%Y %H:%M:%S %z"),
        ("2018-07-01 12:34:56+00", "TIMESTAMP WITH TIME ZONE", "s"),
        ("2018-07-01 12:34:56+00", "TIMESTAMPTZ_NS", "s"),
        ("1530448496", "BIGINT", "s"),
        ("1530448496", "VARCHAR", "s"),
    ):
        assert of(value, kind, unit, zone=zone)[0] == 1530448496


def test_hours_that_a_clock_skips_or_repeats() -> None:
    # 02:30 was not there on 2020-03-29; on 2020-10-25 it came twice, and the second one counts.
    for text, expected in (("2020-03-29 02:30", "2020-03-29T01:30Z"), ("2020-10-25 02:30", "2020-10-25T01:30Z")):
        for kind in ("VARCHAR", "TIMESTAMP", "TIMESTAMP_NS"):
            second = datetime.datetime.fromisoformat(expected).timestamp()
            assert of(text, kind, "iso", zone="Europe/Berlin")[0] == second


@pytest.mark.parametrize("kind", ["TIMESTAMP_NS", "TIMESTAMPTZ_NS"])
@pytest.mark.parametrize("zone", ["UTC", *ZONES])
def test_nanoseconds_are_not_rounded(kind: str, zone: str) -> None:
    mark = "+00" if "TZ" in kind else ""
    second, nanos = of(f"2018-07-01 12:34:56.999999999{mark}", kind, "s", zone=zone)
    assert (second, nanos) == (of(f"2018-07-01 12:34:56{mark}", kind, "s", zone=zone)[0], 999999999)
    assert of(f"1969-12-30 23:59:59.999999999{mark}", kind, "s", zone=zone)[0] < 0
    assert of(None, kind, "s", zone=zone) == (None, None)


@pytest.mark.parametrize("kind", ["BOOLEAN", "FLOAT", "TIME", "BLOB", "INTERVAL"])
def test_types_that_are_no_times(kind: str) -> None:
    assert instant("x", kind, "s") is None


@pytest.mark.parametrize(
    ("texts", "unit"),
    [
        (["1600000000", "0"], "s"),
        (["1600000000000"] * 9 + ["x"], "ms"),
        (["1.6e15"], "us"),
        (["1600000000000000000"], "ns"),
        (["20150511", "20150601"], "%Y%m%d"),
        (["20150511235959"], "%Y%m%d%H%M%S"),
        (["2020-01-01", "2020-01-01T00:00:00Z", "5"], "iso"),
        (["5", "7"], "s"),
        ([], "s"),
    ],
)
def test_guesses(texts: list[str], unit: str) -> None:
    assert guess_unit(texts, "log.csv") == unit


def test_a_mixture_is_refused() -> None:
    texts = ["1600000000"] * 5 + ["1600000000000"] * 3
    with pytest.raises(
        ValueError, match=r"log\.csv fit several units, such as '1600000000' as s and .*ms: .*--time_unit"
    ):
        guess_unit(texts, "log.csv")


def test_the_year_2100() -> None:
    assert datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC).timestamp() == LATEST_TIME
