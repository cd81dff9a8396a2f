"""Times of raw logs: in which unit they are, and SQL for whole seconds and nanoseconds inside the second."""

import datetime
import re
from collections.abc import Sequence

from dist_imsr.data.sql import quoted

LATEST_TIME = 4102444800  # the year 2100; what is later is no time of an interaction
EARLIEST_LIKELY = 631152000  # 1990; a log's times before are more likely in another unit
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # in a second
_DATES = {"%Y%m%d": 8, "%Y%m%d%H%M%S": 14}  # formats of whole numbers, and their digits
_MIXED = 0.1  # the share of a second unit above which the unit is not guessed

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_ISO = re.compile(r"\s*\d{4}-\d{2}-\d{2}(?!\d).*", re.DOTALL)
_DATE_AND_TIME = (
    r"\s*[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]+)?)?"
    r"\s*(Z|[+-][0-9]{2}(:?[0-9]{2})?|[A-Za-z][A-Za-z_/+-]*)?)?\s*"
)
_NANOS = 10**9
_LARGEST = "9.2e18"  # what BIGINT holds
_ABSURD = 2**62  # seconds, for times that BIGINT cannot hold


def is_time(text: str) -> bool:
    """Whether a text may be a time: a number, or a date."""
    return bool(_NUMBER.fullmatch(text) or _ISO.fullmatch(text))


def is_likely(text: str, unit: str | None) -> bool:
    """Whether a text is a time between 1990 and 2100, in a unit or, for None, in any.

    Args:
        text: of the time's column.
        unit: as in `SourceConfig`.
    """
    if unit in (None, "iso") and _ISO.fullmatch(text):
        return True
    if unit is None:
        return any(_fits(text, one) for one in (*UNITS, *_DATES))
    return unit != "iso" and _fits(text, unit)


def _fits(text: str, unit: str) -> bool:
    if unit in UNITS:
        return bool(_NUMBER.fullmatch(text)) and EARLIEST_LIKELY <= float(text) / UNITS[unit] <= LATEST_TIME
    if unit in _DATES and len(text.strip()) != _DATES[unit]:
        return False
    try:
        return EARLIEST_LIKELY <= _utc(datetime.datetime.strptime(text.strip(), unit)).timestamp() <= LATEST_TIME
    except (ValueError, OverflowError):
        return False


def _utc(moment: datetime.datetime) -> datetime.datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def guess_unit(texts: Sequence[str], name: str) -> str:
    """The unit in which most times lie between 1990 and 2100; seconds if none do.

    Args:
        texts: of the time's column.
        name: of the file, for the error.

    Raises:
        ValueError: if two units fit many times each.
    """
    dates = sum(bool(_ISO.fullmatch(text)) for text in texts)
    fitting = {"iso": dates} | {unit: sum(_fits(text, unit) for text in texts) for unit in (*UNITS, *_DATES)}
    best, second, *_ = sorted(fitting, key=lambda unit: -fitting[unit])
    if fitting[second] > _MIXED * len(texts):
        examples = {unit: next(text for text in texts if is_likely(text, unit)) for unit in (best, second)}
        listed = " and ".join(f"{text!r} as {unit}" for unit, text in examples.items())
        raise ValueError(f"time_unit: times of {name} fit several units, such as {listed}: state --time_unit")
    return best if fitting[best] and (best != "iso" or 2 * dates > len(texts)) else "s"


def instant(column: str, kind: str, unit: str, alternatives: bool = False) -> tuple[str, str] | None:
    """SQL for the time of a column.

    Args:
        column: an expression.
        kind: DuckDB's type of it.
        unit: of `UNITS`, ``iso``, or a format of strptime; types that are times have their own.
        alternatives: whether a text that is no number in the unit may be a date.

    Returns:
        Whole unix seconds, rounded down (NULL for what is no time; negative before 1970; `_ABSURD` for what is far too
        large), and the nanoseconds after them; None if the type is no time.
    """
    if kind in ("TIMESTAMP_NS", "TIMESTAMPTZ_NS"):
        return _of_nanoseconds(f"epoch_ns({column})", zoned="TZ" in kind)
    if kind == "DATE" or kind.startswith("TIMESTAMP"):
        zoned = column if "ZONE" in kind else f"({column})::TIMESTAMP::TIMESTAMPTZ"  # in the database's time zone
        return _of_whole(f"epoch_us({zoned})", UNITS["us"])
    number = kind in ("DOUBLE", "HUGEINT", "UBIGINT") or kind.startswith("DECIMAL")
    if not (number or kind == "VARCHAR" or kind.endswith("INT") or kind == "INTEGER"):
        return None
    if unit == "iso":
        return _of_iso(column) if kind == "VARCHAR" else None
    if unit not in UNITS:
        text = f"trim(({column})::VARCHAR)"
        if unit in _DATES:  # strptime would also take 2015051
            text = f"CASE WHEN length({text}) = {_DATES[unit]} THEN {text} END"
        return _of_whole(f"epoch_us(try_strptime({text}, {quoted(unit)})::TIMESTAMPTZ)", 10**6)
    if kind != "VARCHAR":
        return _of_decimal(column, UNITS[unit]) if number else _of_whole(f"({column})::BIGINT", UNITS[unit])
    # Most texts are plain whole numbers. A cast alone would round 1.5 and take 1_000 and 0x10 for numbers.
    whole = f"TRY_CAST({column} AS BIGINT)"
    plain = f"{whole}::VARCHAR = {column}"
    # So many digits and no more characters: what is sure without writing the number again.
    least = 10**9 * UNITS[unit]
    sure = f"strlen({column}) = {len(str(least))} AND {column} >= '1' AND {whole} >= {least}"
    others = _of_decimal(f"CASE WHEN NOT regexp_matches({column}, '[_xX]') THEN {column} END", UNITS[unit])
    if alternatives:
        dated = _of_iso(column)
        is_date = f"contains(ltrim({column}, ' -+'), '-')"
        others = tuple(f"CASE WHEN {is_date} THEN {a} ELSE {b} END" for a, b in zip(dated, others, strict=True))  # type: ignore[assignment]
    seconds, nanos = (
        f"CASE WHEN {sure} THEN {fast} WHEN {plain} THEN {fast} ELSE {slow} END"
        for fast, slow in zip(_of_whole(whole, UNITS[unit]), others, strict=True)
    )
    return seconds, nanos


def _of_whole(number: str, per_second: int) -> tuple[str, str]:
    if per_second == 1:
        return number, "0"
    seconds = f"CASE WHEN {number} < 0 THEN -1 ELSE {number} // {per_second} END"
    return seconds, f"{number} % {per_second} * {_NANOS // per_second}"


def _of_nanoseconds(number: str, zoned: bool) -> tuple[str, str]:
    """Of the number of a type of nanoseconds, whose cast to microseconds would round up."""
    second = f"({number} // {_NANOS} - ({number} % {_NANOS} < 0)::INTEGER)"
    if not zoned:
        micro = UNITS["us"]
        second = f"(epoch_us(make_timestamp({second} * {micro})::TIMESTAMPTZ) // {micro})"
    return second, f"({number} % {_NANOS} + {_NANOS}) % {_NANOS}"


def _of_decimal(number: str, per_second: int) -> tuple[str, str]:
    """Of text, DOUBLE or DECIMAL; a DOUBLE alone would lose the digits after the microsecond."""
    rough, exact = f"TRY_CAST({number} AS DOUBLE)", f"TRY_CAST({number} AS DECIMAL(38,9))"
    whole = f"TRY_CAST(coalesce(floor({exact}), floor({rough})) AS BIGINT)"  # DECIMAL does not read 1e-5
    seconds = (
        f"CASE WHEN isnan({rough}) THEN NULL WHEN {rough} < 0 THEN -1 "
        f"WHEN {rough} >= {_LARGEST} THEN {_ABSURD} ELSE {whole} // {per_second} END"
    )
    inside = f"{whole} % {per_second} * {_NANOS // per_second}"
    after = f"coalesce((({exact} - floor({exact})) * {_NANOS // per_second})::BIGINT, 0)"
    return seconds, f"CASE WHEN {rough} >= 0 AND {rough} < {_LARGEST} THEN {inside} + {after} END"


def _of_iso(column: str) -> tuple[str, str]:
    """Of a date and time, in the database's time zone if it names none.

    TIMESTAMPTZ holds microseconds, so later digits are cut out.
    """
    whole = f"regexp_full_match({column}, {quoted(_DATE_AND_TIME)})"  # DuckDB also reads 2020-12-08 05: and epoch
    seconds = _of_whole(f"CASE WHEN {whole} THEN epoch_us(TRY_CAST({column} AS TIMESTAMPTZ)) END", 10**6)[0]
    digits = f"regexp_extract({column}, ':[0-9]{{2}}[.]([0-9]{{1,9}})', 1)"
    return seconds, f"coalesce(TRY_CAST(rpad({digits}, 9, '0') AS BIGINT), 0)"
