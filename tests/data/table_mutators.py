"""What may happen to a Parquet file before it is written: other types, values, rows and columns."""

import random
from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa

from tests.data.mutators import ALL_UNITS, Mutation, some
from tests.data.raw_logs import Log

TYPES = (
    *(
        pa.float64(),
        pa.float32(),
        pa.string(),
        pa.large_string(),
        pa.decimal128(30, 0),
        pa.decimal128(30, 2),
        pa.null(),
    ),
    *(pa.int32(), pa.uint64(), pa.binary(), pa.bool_(), pa.date32(), pa.dictionary(pa.int32(), pa.string())),
    *(pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.timestamp("ns", "America/New_York")),
    *(pa.time64("us"), pa.duration("s"), pa.list_(pa.int64())),
)


def change_type(draw: random.Random, log: Log) -> None:
    assert log.table is not None
    place, kind = draw.randrange(log.table.num_columns), draw.choice(TYPES)
    values = log.table.column(place).combine_chunks()
    _replace_column(log, place, lambda: _cast(values, kind))


def _replace_column(log: Log, place: int, make: Callable[[], pa.Array]) -> None:
    """Leaves the column as it is if there is no such cast, or if Parquet has no such type or value."""
    before = log.table
    assert before is not None
    try:
        log.table = before.set_column(place, before.column_names[place], make())
        log.render()
    except (pa.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
        log.table = before


def _cast(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_null(kind):
        return pa.nulls(len(values))
    if pa.types.is_list(kind):
        return pa.array([[1]] * len(values), kind)
    if pa.types.is_dictionary(kind):
        return values.cast(pa.string()).dictionary_encode()
    if pa.types.is_binary(kind):
        return values.cast(pa.string()).cast(kind)
    return values.cast(kind)


def change_values(draw: random.Random, log: Log) -> None:
    assert log.table is not None
    place = draw.randrange(log.table.num_columns)
    column = log.table.column(place).combine_chunks()
    values = column.to_pylist()
    new = draw.choice((None, "", " ", "NA", -1, 0, 5, 10**18, 2**62, -0.5, float("nan"), float("inf"), 1e300))
    for row in some(draw, 0, len(values)):
        values[row] = new
    _replace_column(log, place, lambda: pa.array(values, column.type))


def change_rows(draw: random.Random, log: Log) -> None:
    assert log.table is not None
    rows = list(range(len(log.table)))
    for row in some(draw, 0, len(rows)):
        rows.insert(draw.randint(0, len(rows)), row)
    kept = draw.choice((rows, rows[::2], rows[:1], [], draw.sample(rows, len(rows))))
    log.table = log.table.take(pa.array(kept, pa.int64()))


def change_columns(draw: random.Random, log: Log) -> None:
    assert log.table is not None
    names, place = log.table.column_names, draw.randrange(log.table.num_columns)
    kind = draw.randrange(4)
    if kind == 0 and len(names) > 1:
        log.table = log.table.remove_column(place)
    elif kind == 1:
        log.table = log.table.rename_columns([*names[:place], "renamed", *names[place + 1 :]])
    elif kind == 2:
        log.table = log.table.rename_columns(draw.sample(names, len(names)))
        log.form = replace(log.form, units=ALL_UNITS)
    else:
        log.table = log.table.select(draw.sample(names, len(names)))


TABLE: tuple[Mutation, ...] = (
    change_type,
    change_type,
    change_type,
    change_values,
    change_values,
    change_rows,
    change_columns,
)
