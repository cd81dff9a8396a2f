"""Lists of users in files: raw ids as they stand, from text, CSV or Parquet."""

import csv
import io
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as kinds

from dist_imsr.data.dataset import Dataset

_COLUMN = "user"
_DIGITS = 38  # of the widest decimal that is compared
_EXACT = 2**53  # integers up to here are exact in a column of floats


class UserList(NamedTuple):
    """Distinct users in the order of a file.

    Args:
        names: ``[n]`` the ids as they stand in the file.
        ids: ``[n]`` the same in the type of the data's raw ids; null where that type has no such id, like ``007`` among
            integers.
    """

    names: pa.Array
    ids: pa.Array


def read_user_list(path: Path, dataset: Dataset, key: str = "users") -> UserList:
    """Reads a file of raw user ids; blanks, case and leading zeros are part of an id.

    - ``.parquet``: the column ``user``, else the first. Its type may differ from that of the data's raw ids if no id
      changes: any text, integers, decimals, dictionaries, UUIDs.
    - ``.csv``: the first row is a header only if one of its cells is exactly ``user``, and no user of the data has that
      id: then that column counts. Otherwise all rows count, with their first column.
    - any other name: one id a line, which ends with a line feed, or a carriage return and a line feed.

    CSV and text are UTF-8, with or without a byte order mark; empty lines are skipped.

    Args:
        path: the file.
        dataset: the prepared data.
        key: of the configuration, for errors.

    Returns:
        The users, known or not.

    Raises:
        ValueError: naming the file, if it cannot be read, has no or empty ids, or has ids of a type that would change.
    """
    try:
        if path.suffix.lower() == ".parquet":
            names = _parquet_column(path)
        else:
            text = path.read_bytes().decode("utf-8-sig")
            lines = _csv_column(text, dataset) if path.suffix.lower() == ".csv" else _lines(text)
            names = pa.array(lines, pa.string())
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}: {path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except (pa.ArrowException, OSError, csv.Error, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{key}: {path} holds no list of user ids ({reason}): name a file of them") from error
    if not len(names) or names.null_count:
        raise ValueError(f"{key}: {path} holds {'empty' if names.null_count else 'no'} user ids")
    kind = dataset.raw_id_type("users")
    try:
        names = names.unique()
        return UserList(names, ids_of(names, kind))
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(
            f"{key}: {path} has ids of the type {names.type}, which cannot be compared with those of the data, {kind}: "
            "save them in that type or as text"
        ) from error


def ids_of(names: pa.Array, kind: pa.DataType) -> pa.Array:
    """Converts ids as they stand to the type of the data's raw ids.

    Args:
        names: ``[n]`` without nulls; text, numbers, or of the type ``kind``.
        kind: a type of Arrow.

    Returns:
        ``[n]`` of the type ``kind``; null for texts that are no canonical decimal number of that type.

    Raises:
        TypeError: if an id would change.
        pa.ArrowException: if Arrow has no such conversion, or an id is out of range.
    """
    if names.type == kind:
        return names
    if _is_text(names.type) and _is_whole(kind):
        return _whole_numbers(names, kind)
    floating = kinds.is_floating(names.type)
    number = kinds.is_integer(names.type) or kinds.is_decimal(names.type) or floating
    if not (_is_text(names.type) or (_is_whole(names.type) if _is_text(kind) else number)):
        raise TypeError(names.type)
    converted = _cast(names, kind)
    exact = not floating or pc.max(pc.abs(names)).as_py() < _EXACT
    if not exact or not _cast(converted, names.type).equals(names):
        raise TypeError(names.type)
    return converted


def _lines(text: str) -> list[str]:
    return [line for line in (line.removesuffix("\r") for line in text.split("\n")) if line]


def _csv_column(text: str, dataset: Dataset) -> list[str | None]:
    """A column of CSV; None for an empty cell."""
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    column = 0
    if rows and _COLUMN in rows[0] and not _is_known(_COLUMN, dataset):
        column = rows.pop(0).index(_COLUMN)
    return [row[column] or None if column < len(row) else None for row in rows]


def _is_known(name: str, dataset: Dataset) -> bool:
    if not _is_text(dataset.raw_id_type("users")):
        return False
    return bool((dataset.user_ids(pa.array([name], dataset.raw_id_type("users"))) >= 0).any())


def _parquet_column(path: Path) -> pa.Array:
    """The column of users, in a plain type."""
    with pq.ParquetFile(path) as file:
        columns = file.schema_arrow.names
        name = _COLUMN if _COLUMN in columns else columns[0]
        column = file.read(columns=[name]).column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # more than fits into one array
        raise ValueError(f"its column {name} is too long")
    if isinstance(column.type, pa.UuidType):
        return pa.array([None if one is None else str(one) for one in column.to_pylist()], pa.string())
    if kinds.is_dictionary(column.type):
        column = column.dictionary_decode()
    text = any(is_kind(column.type) for is_kind in (kinds.is_binary, kinds.is_large_binary, kinds.is_string_view))
    return column.cast(pa.string()) if text else column


def _whole_numbers(names: pa.Array, kind: pa.DataType) -> pa.Array:
    """Integers from canonical texts; null for other texts and for numbers that the type does not have."""
    if kinds.is_integer(kind):
        limits = np.iinfo(kind.to_pandas_dtype())
        low, high = int(limits.min), int(limits.max)
    else:
        high = 10**kind.precision - 1
        low = -high
    wide = pa.decimal128(_DIGITS, 0)
    canonical = pc.match_substring_regex(names, f"^(0|-?[1-9][0-9]{{0,{_DIGITS - 1}}})$")
    numbers = pc.if_else(canonical, names, pa.scalar(None, names.type)).cast(wide)
    inside = pc.and_(
        pc.greater_equal(numbers, pa.scalar(Decimal(low), wide)), pc.less_equal(numbers, pa.scalar(Decimal(high), wide))
    )
    return pc.if_else(inside, numbers, pa.scalar(None, wide)).cast(kind)


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Arrow's checked cast, which has no way from integers to short decimals."""
    if kinds.is_integer(values.type) and kinds.is_decimal(kind):
        values = values.cast(pa.decimal128(_DIGITS, kind.scale))
    return values.cast(kind)


def _is_text(kind: pa.DataType) -> bool:
    return bool(kinds.is_string(kind) or kinds.is_large_string(kind))


def _is_whole(kind: Any) -> bool:
    """Whether a type has whole numbers alone, or decimals that may be whole."""
    return bool(kinds.is_integer(kind) or (kinds.is_decimal(kind) and kind.scale <= 0))
