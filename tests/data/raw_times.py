"""The exact time of a text or a number, by Python's datetime and exact fractions."""

import datetime
import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

LAST = 4102444800  # 2100-01-01
SCALES = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

_PLAIN = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_DAY = re.compile(r"[0-9]{8}")
_ISO = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[ T]([0-9]{2}:[0-9]{2}:[0-9]{2})(\.[0-9]{1,9})?(Z|[+-][0-9]{2}(?::?[0-9]{2})?)?)?"
)

Time = tuple[Fraction | None, set[str]]


def time_of(text: str, unit: str) -> Time:
    """The unix seconds that a text means in a column of a unit, and the doubts about it; None if it means none."""
    bare = text.strip()
    doubts = {"blanks around a time"} if bare != text else set()
    if _DAY.fullmatch(bare) and unit in ("date", "iso"):
        seconds = _iso(f"{bare[:4]}-{bare[4:6]}-{bare[6:]}")[0]
        return seconds, doubts | ({"a date of another form"} if unit == "iso" else set())
    if unit in SCALES:
        seconds, more = number_of(bare, unit)
        if seconds is not None or not more:
            return seconds, doubts | more
    seconds, more = _iso(bare)
    return seconds, doubts | more | ({"a date among numbers"} if unit != "iso" else set())


def number_of(text: str, unit: str) -> Time:
    """The seconds of a number; the doubt "no number" if the text is none."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None, {"no number"}
    doubts = set() if _PLAIN.fullmatch(text) else {"a number of another form"}
    if not value.is_finite() or value.adjusted() > 40:
        return None, set()
    if value.is_zero() and value.is_signed():
        doubts.add("minus zero")
    exact = Fraction(0) if value.adjusted() < -40 else Fraction(value) / SCALES[unit]
    return in_range(exact), doubts


def in_range(seconds: Fraction) -> Fraction | None:
    """The seconds if they are neither negative nor after 2100-01-01."""
    return seconds if 0 <= seconds <= LAST else None


def _iso(text: str) -> Time:
    match = _ISO.fullmatch(text)
    try:
        if match is None:  # an ISO time, but of a rare form: a week, no seconds, no hyphens
            return in_range(_seconds(datetime.datetime.fromisoformat(text))), {"a date of another form"}
        day, clock, fraction, zone = match.groups()
        moment = datetime.datetime.fromisoformat(f"{day}T{clock or '00:00:00'}{zone or ''}")
        return in_range(_seconds(moment) + Fraction(fraction or 0)), set()
    except ValueError:
        return None, set()


def _seconds(moment: datetime.datetime) -> Fraction:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    since = aware - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return Fraction(since.days * 86400 + since.seconds) + Fraction(since.microseconds, 10**6)
