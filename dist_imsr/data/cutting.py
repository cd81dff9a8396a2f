"""Cuts time into spans: by shares of the whole period, by stated edges, or by the calendar."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import ClassVar
from zoneinfo import ZoneInfo

import numpy as np

from dist_imsr.checks import require
from dist_imsr.data.times import EARLIEST_LIKELY, LATEST_TIME

MOST_SPANS = 2**15
_EVERY = re.compile(r"([1-9]\d{0,4})([hd])")
_HOUR = 3600


@dataclass(kw_only=True)
class EdgeOptions:
    """The cut into spans by time, in the place of alpha and spans.

    Args:
        span_edges: the end of the pre-training span and of each span after it, in rising order; with append, of each
            new span. Dates, dates and times, or unix seconds. Later rows do not count.
        span_every: the length of the spans after pretrain_until: hours or days, such as 1h, 1d or 7d. A day begins when
            the clock of time_zone says so.
        pretrain_until: the end of the pre-training span, with span_every.
    """

    own_heading: ClassVar[bool] = True

    span_edges: list[str | int] | None = None
    span_every: str | None = None
    pretrain_until: str | int | None = None

    def __post_init__(self) -> None:
        every, until = self.span_every, self.pretrain_until
        require(every is None or self.span_edges is None, "span_every", every, "none with span_edges")
        require(every is None or bool(_EVERY.fullmatch(every)), "span_every", every, "a length such as 1h, 1d or 7d")
        require((every is None) == (until is None), "pretrain_until", until, "a time with span_every, else none")


def second_of(key: str, value: str | int, zone: str) -> int:
    """The unix second of a time in the configuration.

    Args:
        key: for errors.
        value: a date, a date and time, or unix seconds.
        zone: of dates that name none.

    Raises:
        ValueError: naming the key.
    """
    text = str(value)
    if text.isdecimal():
        likely = EARLIEST_LIKELY <= int(text) <= LATEST_TIME or len(text) < 8
        require(likely, key, text, "unix seconds between 1990 and 2100, or a date such as 2017-11-25")
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    require(moment is not None, key, text, "a date such as 2017-11-25, a date and time, or unix seconds")
    assert moment is not None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))).timestamp())


def date_of(second: int) -> str:
    """A unix second as a date and time in UTC, for messages."""
    return datetime.fromtimestamp(second, UTC).isoformat().replace("+00:00", "Z")


def stated_edges(options: EdgeOptions, zone: str) -> list[int]:
    """The seconds of ``span_edges``; none without.

    Raises:
        ValueError: naming the key, if one is no time, or if they do not rise.
    """
    edges = [second_of("span_edges", edge, zone) for edge in options.span_edges or []]
    require(options.span_edges != [], "span_edges", [], "at least one")
    rising = all(first < second for first, second in itertools.pairwise(edges))
    require(rising, "span_edges", options.span_edges, "times in rising order")
    return edges


def share_edges(first: int, last: int, alpha: float, spans: int) -> np.ndarray:
    """Cuts a period into the pre-training span and equal spans; fractions of a second are rounded up.

    Args:
        first: the first second of the period.
        last: its last second.
        alpha: the part of the period that is the pre-training span.
        spans: T, the number of equal spans in the rest of the period.

    Returns:
        ``[T + 2]`` int64; span t is ``edges[t] <= time < edges[t + 1]``.

    Raises:
        ValueError: if the period is too short.
    """
    share = Fraction(str(alpha))
    parts = [share + (1 - share) * Fraction(span, spans) for span in range(spans)]
    edges = [first, *(first + math.ceil(part * (last - first)) for part in parts), last]
    if len(set(edges)) < len(edges):
        raise ValueError(f"spans: the interactions lie within {last - first} seconds, too little for {spans} spans")
    return np.array([*edges[:-1], last + 1], np.int64)


def calendar_edges(every: str, start: int, zone: str) -> Iterator[int]:
    """The edges of spans by the calendar, without end.

    Args:
        every: hours or days, as in `EdgeOptions`.
        start: the first edge, in unix seconds.
        zone: whose clock decides when a day ends.

    Yields:
        Unix seconds, from ``start`` on.
    """
    match = _EVERY.fullmatch(every)
    assert match is not None
    number, unit = int(match[1]), match[2]
    first = datetime.fromtimestamp(start, ZoneInfo(zone))
    for step in itertools.count():
        if unit == "h":
            yield start + step * number * _HOUR
        else:  # by the clock on the wall: a day may have 23 or 25 hours
            yield int((first + timedelta(days=step * number)).timestamp())


def calendar_until(every: str, start: int, zone: str, last: int) -> list[int]:
    """The edges of `calendar_edges` up to the first that is later than a second.

    Args:
        every: as in `EdgeOptions`.
        start: the first edge.
        zone: of the calendar.
        last: a unix second.

    Raises:
        ValueError: if there are too many.
    """
    edges = list[int]()
    for edge in calendar_edges(every, start, zone):
        edges.append(edge)
        if edge > last:
            return edges
        if len(edges) > MOST_SPANS:
            break
    raise ValueError(
        f"span_every: more than {MOST_SPANS} spans of {every} are between {date_of(start)} and the last row, "
        f"{date_of(last)}: choose longer ones, or cut off wrong times with --until"
    )


def first_edges(options: EdgeOptions, zone: str, alpha: float, spans: int, first: int, last: int) -> np.ndarray:
    """The edges of a log that is prepared in one go.

    Args:
        options: how it is cut.
        zone: of times without one.
        alpha: as in `share_edges`.
        spans: as in `share_edges`.
        first: the first second of its interactions.
        last: the last second of its interactions.

    Returns:
        ``[spans + 1]`` int64: the first second of each span, and the end of the last.

    Raises:
        ValueError: naming the key, if the pre-training span or the period has no time.
    """
    if options.span_every is not None and options.pretrain_until is not None:
        key, start = "pretrain_until", second_of("pretrain_until", options.pretrain_until, zone)
        edges = calendar_until(options.span_every, start, zone, last)
    elif options.span_edges is not None:
        key, edges = "span_edges", stated_edges(options, zone)
    else:
        return share_edges(first, last, alpha, spans)
    if first >= edges[0]:
        raise ValueError(f"{key}: the first interaction, {date_of(first)}, is not before {date_of(edges[0])}")
    return np.array([first, *edges], np.int64)


def further_edges(options: EdgeOptions, zone: str, earlier: Sequence[int], spans: int, last: int) -> np.ndarray:
    """The edges of a log that is appended.

    Args:
        options: how it is cut: by the calendar or by its own stated edges; else into as many equal spans as come
            closest to the length of the earlier ones.
        zone: of times without one.
        earlier: the first second of each span so far, and the end of the last.
        spans: T of the first preparation.
        last: the last second of the log's interactions.

    Returns:
        ``[spans + 1]`` int64, from the end of the last span on.

    Raises:
        ValueError: naming the key.
    """
    end = earlier[-1]
    if options.span_every is not None:
        edges = calendar_until(options.span_every, earlier[1], zone, last)
        return np.array([end, *(edge for edge in edges if edge > end)], np.int64)
    stated = stated_edges(options, zone)
    if stated:
        require(stated[0] > end, "span_edges", date_of(stated[0]), f"times after the last edge, {date_of(end)}")
        return np.array([end, *stated], np.int64)
    first_later = earlier[1 : spans + 2]  # those of the first preparation, which are of one length
    length = (first_later[-1] - first_later[0]) / max(1, len(first_later) - 1)
    parts = max(1, round((last + 1 - end) / length)) if length else 1
    return np.array([end + math.ceil(Fraction(part * (last + 1 - end), parts)) for part in range(parts + 1)], np.int64)
