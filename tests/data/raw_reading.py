"""An independent, slow reading of raw logs in plain Python.

`readings` yields every reading that a correct preparation may choose. It is one reading if the log is clear. Where the
contract leaves freedom (is a lone quote text? is 1e5 a number?), there is one for each choice under which few enough
rows are bad. A log without any reading must be refused.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tests.data.raw_lines import BACKSLASH, BLANKS, DOUBLED, NO_QUOTE, UNDECODED, Record, physical_lines, split, unpack
from tests.data.raw_times import time_of

Row = tuple[Any, Any, Fraction]  # user, item, exact unix seconds

DELIMITERS = (",", "\t", ";", "|", "::", "\x01", BLANKS)

BEHAVIOURS = ("pv", "buy", "cart", "fav")
WINDOW = (1511539200, 1512316799)  # 2017-11-25 .. 2017-12-03 in China

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)", re.ASCII)


@dataclass(frozen=True)
class Format:
    """What the command line states and what an undamaged log leaves no doubt about.

    Args:
        source: csv, parquet or taobao.
        columns: names or positions of user, item and time.
        delimiters: the possible ones.
        escapes: those of the possible quotes.
        header: a log by position certainly starts with one; False: it may, if its first line is no row.
        units: the possible units of numbers; or date (20150511) or iso.
        encoding: the stated one.
        nulls: texts that mean a missing id.
        max_bad: the maximal fraction of bad rows.
    """

    source: str
    columns: tuple[str, str, str] = ("user", "item", "time")
    delimiters: tuple[str, ...] = (",",)
    escapes: tuple[str, ...] = (NO_QUOTE, DOUBLED, BACKSLASH)
    header: bool = False
    units: tuple[str, ...] = ("s",)
    encoding: str | None = None
    nulls: tuple[str, ...] = ()
    max_bad: Fraction = Fraction(1, 100)


@dataclass(frozen=True)
class Reading:
    """The rows in the order of time, the number of all rows, and the physical lines of the bad ones."""

    rows: tuple[tuple[Any, Any, int], ...]
    total: int
    bad_lines: tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """What a line may mean: `meaning` if all of its doubts are accepted, otherwise it is bad.

    A meaning is a row, "skip" (not counted) or "filtered" (counted, but neither kept nor bad); None is always bad.
    """

    number: int
    meaning: Row | str | None
    doubts: frozenset[str] = frozenset()


def readings(data: bytes, form: Format) -> Iterator[Reading]:
    """All readings of a file in text form: csv or taobao, compressed or not."""
    content = unpack(data)
    if content is None:
        return
    lines = physical_lines(content, form.encoding)
    if lines is None:
        return
    seen = set()
    for delimiter, units in itertools.product(form.delimiters, form.units):
        for records in _all_records(lines, delimiter, form.escapes):
            for judged in _judged(records, form, units):
                for reading in choices(judged, form.max_bad):
                    if reading not in seen:
                        seen.add(reading)
                        yield reading


def _all_records(lines: list[Record], delimiter: str, escapes: Sequence[str]) -> Iterator[list[Record]]:
    """The lines as fields, under each possible quote, with and without values that span lines."""
    quoted = [_records(lines, delimiter, DOUBLED, spanning) for spanning in (False, True)]
    # Where all quotes are well-formed, reading them as text is a mistake.
    fine = any(line.fields and '"' in line.fields[0] for line in lines) and not any(
        record.fields is None or "a lone quote" in record.doubts
        for record, line in zip(quoted[0], lines, strict=True)
        if line.fields and '"' in line.fields[0]
    )
    for escape in escapes:
        if escape == NO_QUOTE:
            if not fine or DOUBLED not in escapes:
                yield _records(lines, delimiter, NO_QUOTE, False)
        elif escape == DOUBLED:
            yield from quoted
        else:
            yield from (_records(lines, delimiter, escape, spanning) for spanning in (False, True))


def _records(lines: list[Record], delimiter: str, escape: str, spanning: bool) -> list[Record]:
    records, place = [], 0
    while place < len(lines):
        line, used = lines[place], 1
        fields, doubts = split(line.fields[0], delimiter, escape) if line.fields else (None, frozenset())
        if fields is None and spanning and line.fields:
            text = line.fields[0]
            # A value over several lines counts only if it ends well: else, one lone quote would swallow many rows.
            for more, other in enumerate(lines[place + 1 :], 2):
                if other.fields is None:
                    break
                text += "\n" + other.fields[0]
                joined, joined_doubts = split(text, delimiter, escape)
                if joined is not None:
                    fields, doubts, used = joined, joined_doubts, more
                    break
        records.append(Record(line.number, fields, doubts | line.doubts))
        place += used
    return records


def _judged(records: list[Record], form: Format, unit: str) -> Iterator[list[Line]]:
    """The meaning of all lines, for each possible header and number of columns."""
    filled = [record for record in records if record.fields != [""]]
    if not filled:
        return
    first = filled[0]
    if form.source == "csv" and not form.columns[0].isdecimal():
        names = [name.strip() for name in first.fields or ()]
        if set(form.columns) <= set(names):
            places = [names.index(name) for name in form.columns]
            yield [judge(record, form, places, len(names), unit) for record in filled[1:]]
        return
    places = [0, 1, 4] if form.source == "taobao" else [int(column) for column in form.columns]
    counts = Counter(len(record.fields) for record in filled if record.fields)
    for count in [5] if form.source == "taobao" else counts:
        if count > max(places):
            lines = [judge(record, form, places, count, unit) for record in filled]
            if not form.header:
                yield lines
            if form.header or lines[0].doubts or lines[0].meaning in (None, "skip"):
                yield lines[1:]


def judge(record: Record, form: Format, places: Sequence[int], count: int, unit: str) -> Line:
    """What a record means under one dialect."""
    fields, doubts = record.fields, set(record.doubts)
    if fields is not None and len(fields) == 1 and not fields[0].strip(" \t"):
        return Line(record.number, "skip", frozenset({"a line of blanks"}))
    if fields is not None and len(fields) == count + 1 and fields[-1] == "":
        fields, doubts = fields[:-1], doubts | {"a delimiter at the end"}
    if fields is None or len(fields) != count or UNDECODED in doubts:
        return Line(record.number, None)
    user, item, time = (fields[place] for place in places)
    when, more = time_of(time, unit)
    doubts |= more
    if when is None:
        return Line(record.number, None)
    if form.source == "taobao":
        known = [fields[3] in BEHAVIOURS, WINDOW[0] <= when <= WINDOW[1]]
        known += [bool(_NUMBER.fullmatch(value)) and value != "-0" for value in (user, item)]
        if not all(known) or not all(-(2**63) <= int(value) < 2**63 for value in (user, item)):
            return Line(record.number, None)
        if "." in time:
            doubts.add("a fraction where there is none")
        if fields[3] != "pv":
            return Line(record.number, "filtered", frozenset(doubts))
        return Line(record.number, (int(user), int(item), when), frozenset(doubts))
    for value in (user, item):
        if not value.strip(" \t") or value in form.nulls:
            return Line(record.number, None)
        doubts |= {"a blank id"} if not value.strip() else set()
        doubts |= {"NUL"} if "\0" in value else set()
    return Line(record.number, (user, item, when), frozenset(doubts))


def choices(lines: Sequence[Line], max_bad: Fraction) -> Iterator[Reading]:
    """A reading for each choice of accepted doubts, if few enough rows are bad."""
    doubts = sorted(set().union(*(line.doubts for line in lines)))[:6]
    for size in range(len(doubts), -1, -1):
        for accepted in map(set, itertools.combinations(doubts, size)):
            meanings = [(line.number, line.meaning if line.doubts <= accepted else None) for line in lines]
            counted = [(number, meaning) for number, meaning in meanings if meaning != "skip"]
            bad = tuple(number for number, meaning in counted if meaning is None)
            rows = sorted((row for _, row in counted if isinstance(row, tuple)), key=lambda row: row[2])
            if rows and len(bad) <= max_bad * len(counted):
                yield Reading(tuple((user, item, int(when)) for user, item, when in rows), len(counted), bad)
