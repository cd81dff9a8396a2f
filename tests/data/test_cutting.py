"""Where spans begin and end: by shares, by stated times, and by the calendar of a time zone."""

import itertools
import math
from datetime import date, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dist_imsr.config import resolve
from dist_imsr.data.cutting import (
    MOST_SPANS,
    EdgeOptions,
    calendar_edges,
    calendar_until,
    first_edges,
    further_edges,
    second_of,
    share_edges,
    stated_edges,
)
from dist_imsr.data.prepare import PrepareConfig

START = 1_600_041_600  # 2020-09-14, a midnight in UTC
HOUR, DAY = 3600, 86_400


def midnight(day: str, zone: str) -> int:
    """The first second of a day on a clock, found without arithmetic on clocks."""
    before = datetime.fromisoformat(f"{day}T00:00+00:00") - timedelta(days=1)
    seconds = range(int(before.timestamp()), int(before.timestamp()) + 2 * DAY, 900)
    return next(
        second for second in seconds if datetime.fromtimestamp(second, ZoneInfo(zone)).date().isoformat() == day
    )


def days_from(day: str, number: int, step: int = 1) -> list[str]:
    return [(date.fromisoformat(day) + timedelta(days=step * one)).isoformat() for one in range(number)]


# Shares.


@settings(deadline=None)
@given(
    first=st.integers(0, 10**6),
    length=st.integers(1, 10**5),
    alpha=st.sampled_from([0.5, 0.1, 0.3, 1 / 3, 0.99]),
    spans=st.integers(1, 9),
)
def test_each_second_is_in_the_span_of_its_share(first: int, length: int, alpha: float, spans: int) -> None:
    try:
        edges = share_edges(first, first + length, alpha, spans).tolist()
    except ValueError:
        edges = []
    begin = Fraction(str(alpha)) * length
    bounds = [Fraction(0), *(begin + (length - begin) * span / spans for span in range(spans))]
    if not edges:
        assert len({math.ceil(bound) for bound in (*bounds, length)}) < spans + 2
        return
    assert (edges[0], edges[-1], len(edges)) == (first, first + length + 1, spans + 2)
    for second in {second for edge in edges[1:-1] for second in (edge - 1, edge)}:
        span = max(span for span, bound in enumerate(bounds) if second - first >= bound)
        assert edges[span] <= second < edges[span + 1]


def test_a_period_that_is_too_short() -> None:
    assert share_edges(5, 7, 0.5, 1).tolist() == [5, 6, 8]
    with pytest.raises(ValueError, match="spans: the interactions lie within 1 seconds, too little for 1 spans"):
        share_edges(5, 6, 0.5, 1)


# The calendar.


@pytest.mark.parametrize(
    ("zone", "day"),
    [
        ("UTC", "2020-02-27"),
        ("Asia/Shanghai", "2020-02-27"),
        ("Europe/Berlin", "2020-03-27"),  # a day of 23 hours
        ("Europe/Berlin", "2020-10-23"),  # a day of 25 hours
        ("America/Sao_Paulo", "2018-11-02"),  # a day without a midnight
        ("America/Sao_Paulo", "2018-02-15"),  # a day whose last hour comes twice
        ("America/Havana", "2020-10-30"),  # a day with two midnights
        ("Asia/Kathmandu", "2020-01-01"),
    ],
)
@pytest.mark.parametrize("step", [1, 7])
def test_a_day_begins_when_the_clock_says_so(zone: str, day: str, step: int) -> None:
    start = second_of("pretrain_until", day, zone)
    edges = list(itertools.islice(calendar_edges(f"{step}d", start, zone), 5))
    assert edges == [midnight(one, zone) for one in days_from(day, 5, step)]


def test_days_of_23_and_25_hours() -> None:
    for day, hours in (("2020-03-28", [24, 23, 24]), ("2020-10-24", [24, 25, 24])):
        start = second_of("pretrain_until", day, "Europe/Berlin")
        edges = list(itertools.islice(calendar_edges("1d", start, "Europe/Berlin"), 4))
        assert (np.diff(edges) / HOUR).tolist() == hours


def test_a_day_may_begin_at_another_hour() -> None:
    edges = list(itertools.islice(calendar_edges("1d", START + 5 * HOUR, "Europe/Berlin"), 60))
    clocks = [datetime.fromtimestamp(edge, ZoneInfo("Europe/Berlin")) for edge in edges]
    assert {clock.time().isoformat() for clock in clocks} == {"07:00:00"}
    assert [clock.date().isoformat() for clock in clocks] == days_from("2020-09-14", 60)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
def test_hours_have_3600_seconds_whatever_the_clock_says(zone: str) -> None:
    start = int(datetime(2020, 10, 24, 22, tzinfo=ZoneInfo("UTC")).timestamp())  # three hours before it is set back
    assert list(itertools.islice(calendar_edges("6h", start, zone), 5)) == [
        start + 6 * HOUR * step for step in range(5)
    ]


def test_the_calendar_ends_after_the_last_row() -> None:
    assert calendar_until("1d", START, "UTC", START + DAY - 1) == [START, START + DAY]
    assert calendar_until("1d", START, "UTC", START + DAY) == [START, START + DAY, START + 2 * DAY]
    with pytest.raises(
        ValueError, match=rf"span_every: more than {MOST_SPANS} spans of 1h are .*2020-09-14.*2099.*--until"
    ):
        calendar_until("1h", START, "UTC", 4_102_444_799)


# A log in one go.


def edges_of(first: int, last: int, **options: object) -> list[int]:
    return first_edges(EdgeOptions(**options), "UTC", 0.5, 2, first, last).tolist()


def test_the_first_edges() -> None:
    assert edges_of(START, START + 100) == [START, START + 50, START + 75, START + 101]
    every = {"span_every": "1d", "pretrain_until": "2020-09-16"}
    whole = [START + day * DAY for day in (2, 3, 4)]
    assert edges_of(START + 5, START + 3 * DAY + 7, **every) == [START + 5, *whole]
    assert edges_of(START + 5, START + 9, **every) == [START + 5, whole[0]]  # the pre-training span alone
    stated = ["2020-09-16", "2020-09-16T06:00", str(START + 3 * DAY)]
    assert edges_of(START + 5, START + 9, span_edges=stated) == [START + 5, whole[0], whole[0] + 6 * HOUR, whole[1]]


@pytest.mark.parametrize("options", [{"span_edges": ["2020-09-14"]}, {"span_every": "1d", "pretrain_until": START}])
def test_the_pretraining_span_holds_a_second(options: dict) -> None:
    with pytest.raises(
        ValueError, match=r": the first interaction, 2020-09-14T00:00:00Z, is not before 2020-09-14T"
    ) as no:
        edges_of(START, START + DAY, **options)
    assert str(no.value).split(":")[0] == [*options][-1]


def test_dates_are_in_the_time_zone_unless_they_name_one() -> None:
    dates = ["2020-09-14", "2020-09-14 09:00", "2020-09-14T09:00+02:00", "2020-09-14T09:00Z", str(START + DAY)]
    assert stated_edges(EdgeOptions(span_edges=dates), "Asia/Shanghai") == [
        START - 8 * HOUR,
        START + HOUR,
        START + 7 * HOUR,
        START + 9 * HOUR,
        START + DAY,
    ]
    assert second_of("from", 7, "Asia/Shanghai") == 7


@pytest.mark.parametrize(
    "words",
    [
        ["--span_edges", "2020-09-14", "2020-09-15 08:00", "1600300800"],
        ["--span_edges", "[2020-09-14, 2020-09-15 08:00, 1600300800]"],
        ["--config", "edges.yaml"],
    ],
)
def test_edges_on_the_command_line_and_in_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("edges.yaml").write_text("span_edges: [2020-09-14, 2020-09-15 08:00, 1600300800]\n")
    config = resolve(PrepareConfig, ["--source", "csv", "--output", "out", *words])
    assert stated_edges(config, "UTC") == [START, START + 32 * HOUR, START + 3 * DAY]
    assert config.period == (None, START + 3 * DAY)


@pytest.mark.parametrize("text", ["soon", "2020-02-30", "20200914", 20200914, "1600041600000", "-5", ""])
def test_no_time(text: str | int) -> None:
    with pytest.raises(ValueError, match=r"^until: .* is impossible here"):
        second_of("until", text, "UTC")


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"span_every": "1w", "pretrain_until": START}, "span_every"),
        ({"span_every": "0d", "pretrain_until": START}, "span_every"),
        ({"span_every": "d", "pretrain_until": START}, "span_every"),
        ({"span_every": "1d"}, "pretrain_until"),
        ({"pretrain_until": START}, "pretrain_until"),
        ({"span_every": "1d", "pretrain_until": START, "span_edges": ["2020-09-14"]}, "span_every"),
        ({"span_every": "1d", "pretrain_until": "soon"}, "pretrain_until"),
        ({"span_edges": []}, "span_edges"),
        ({"span_edges": ["2020-09-15", "2020-09-14"]}, "span_edges"),
        ({"span_edges": ["2020-09-15", "2020-09-15T00:00Z"]}, "span_edges"),
        ({"span_edges": ["2020-09-15", "soon"]}, "span_edges"),
        ({"time_zone": "Europe"}, "time_zone"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"time_zone": ""}, "time_zone"),
        ({"time_zone": "localtime"}, "time_zone"),
        ({"source": "drift", "span_edges": ["2020-09-15"]}, "span_edges"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_read(options: dict, key: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key}: .* is impossible here"):
        PrepareConfig(**{"source": "csv", "output": Path("out")} | options)


# A log that is appended.


def further(earlier: list[int], last: int, spans: int = 2, zone: str = "UTC", **options: object) -> list[int]:
    return further_edges(EdgeOptions(**options), zone, earlier, spans, last).tolist()


def test_the_calendar_goes_on() -> None:
    zone, days = "Europe/Berlin", [midnight(day, "Europe/Berlin") for day in days_from("2020-10-22", 6)]
    options = {"span_every": "1d", "pretrain_until": "2020-10-22"}
    assert further([5, *days[:3]], days[4], zone=zone, **options) == days[2:]
    assert further([5, *days[:3]], days[4] - 1, zone=zone, **options) == days[2:5]


def test_stated_edges_follow_the_last_one() -> None:
    assert further([5, 20, 30], 33, span_edges=["40", "45"]) == [30, 40, 45]
    for edge in ("30", "29"):
        with pytest.raises(ValueError, match=r"span_edges: .* is impossible here; expected times after the last edge"):
            further([5, 20, 30], 33, span_edges=[edge, "50"])


@settings(deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=6), st.integers(1, 5), st.integers(0, 10**7))
def test_equal_spans_are_about_as_long_as_those_before(lengths: list[int], spans: int, more: int) -> None:
    earlier = np.cumsum([7, *lengths]).tolist()
    end, last = earlier[-1], earlier[-1] + more
    usual = np.mean(lengths[1 : spans + 1])  # those of the first preparation
    assume(more / usual < 1000)
    edges = further(earlier, last, spans)
    assert (edges[0], edges[-1]) == (end, last + 1)
    new = np.diff(edges)
    assert new.max() - new.min() <= 1
    parts = len(new)
    assert abs((more + 1) / usual - parts) <= 0.5 or parts == 1


def test_after_the_pretraining_span_alone_one_span_follows() -> None:
    assert further([5, 20], 33) == [20, 34]
