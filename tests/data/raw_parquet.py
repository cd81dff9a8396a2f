"""An independent, slow reading of a Parquet log by pyarrow, one value at a time."""

import math
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.raw_reading import Format, Line, Reading, choices
from tests.data.raw_times import SCALES, Time, in_range, time_of

Value = tuple[Any, set[str]]  # the value, None if it is bad, and the doubts about it


def parquet_readings(path: Path, form: Format) -> Iterator[Reading]:
    """All readings of a Parquet file; none if pyarrow cannot read it or a column is of an impossible type."""
    try:
        # As a file, not a data set: a folder named KEY=VALUE above it adds no column.
        table = pq.ParquetFile(path).read()
        table.validate(full=True)
        if any(table.column_names.count(name) != 1 for name in form.columns):
            return
        columns = [table[name].combine_chunks() for name in form.columns]
    except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError):
        return
    for unit in form.units:
        try:
            lines = _judged(columns, form, unit)
        except (TypeError, pa.ArrowException, UnicodeDecodeError):
            return
        yield from choices(lines, form.max_bad)


def _judged(columns: list[pa.Array], form: Format, unit: str) -> list[Line]:
    ids = [[_id(value, column.type, form.nulls) for value in column.to_pylist()] for column in columns[:2]]
    times = _times(columns[2], unit)
    lines = []
    for number, (user, item, when) in enumerate(zip(*ids, times, strict=True), 1):
        whole = user[0] is not None and item[0] is not None and when[0] is not None
        doubts = frozenset(user[1] | item[1] | when[1])
        lines.append(Line(number, (user[0], item[0], when[0]), doubts) if whole else Line(number, None))
    return lines


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _id(value: Any, kind: pa.DataType, nulls: tuple[str, ...]) -> Value:
    """Text and whole numbers as they stand; other types are no ids."""
    kind = _plain(kind)
    if pa.types.is_null(kind):
        return None, set()
    if _is_text(kind):
        if value is None or not value.strip(" \t") or value in nulls:
            return None, set()
        return value, ({"a blank id"} if not value.strip() else set()) | ({"NUL"} if "\0" in value else set())
    if pa.types.is_integer(kind):
        return value, set()
    if pa.types.is_decimal(kind) and kind.scale == 0:
        # More digits than a 64-bit integer surely holds are text.
        number = None if value is None else int(value) if kind.precision <= 18 else str(int(value))
        return number, {"a whole decimal"}
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return None if not value else value.decode(), {"bytes for text"}
    raise TypeError(f"{kind} is no type of an id")


def _times(column: pa.Array, unit: str) -> list[Time]:
    kind = _plain(column.type)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if _is_text(kind):
        return [(None, set()) if text is None else time_of(text, unit) for text in column.to_pylist()]
    if pa.types.is_timestamp(kind):
        return [_stamp(value, SCALES[kind.unit]) for value in column.cast(pa.int64()).to_pylist()]
    if pa.types.is_date32(kind):
        return [_stamp(value and value * 86400, 1) for value in column.cast(pa.int32()).to_pylist()]
    if pa.types.is_date64(kind):
        return [_stamp(value, 1000) for value in column.cast(pa.int64()).to_pylist()]
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return [_number(value, unit) for value in column.to_pylist()]
    raise TypeError(f"{kind} is no type of a time")


def _stamp(value: int | None, scale: int) -> Time:
    return (None if value is None else in_range(Fraction(value, scale))), set()


def _number(value: int | float | Decimal | None, unit: str) -> Time:
    if value is None or not math.isfinite(value):
        return None, set()
    if unit == "date":
        return time_of(str(value).removesuffix(".0"), unit)
    if unit == "iso":
        return None, set()
    return in_range(Fraction(value) / SCALES[unit]), ({"minus zero"} if value == 0 and str(value)[0] == "-" else set())
