"""Parquet files as queries."""

import duckdb
import pyarrow.parquet as pq

from dist_imsr.data.input_files import InputFile, name_file, require_column
from dist_imsr.data.raw_formats import RawFormat
from dist_imsr.data.row_options import RowOptions
from dist_imsr.data.source_query import Row, SourceQuery, checked, id_of
from dist_imsr.data.sql import quoted, quoted_path
from dist_imsr.data.text_source import later_faults
from dist_imsr.data.times import guess_unit, instant

_SAMPLE = 10_000  # rows from which the unit of times is guessed


def parquet_query(
    file: InputFile,
    raw: RawFormat,
    rows: RowOptions,
    connection: duckdb.DuckDBPyConnection,
    unit: str | None = None,
    part: range | None = None,
) -> SourceQuery:
    """A query for a Parquet file.

    Args:
        file: the file, not compressed as a whole.
        raw: the names of its columns.
        rows: which rows count.
        connection: for reading the types of the columns.
        unit: of times; guessed by default.
        part: the places of the rows that are read; all by default.

    Returns:
        A query with ids of the file's own type, text or integers; UUIDs and long decimals are text.

    Raises:
        ValueError: naming the file, if it is no Parquet file or damaged, or a column is missing or of a wrong type.
    """
    table = f"read_parquet({quoted_path(file.path)}, hive_partitioning = false)"
    with name_file(file.name):
        pq.read_schema(file.path)  # it finds damage in the footer that DuckDB does not read
        described = connection.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()
    types = {str(name): str(kind) for name, kind, *_ in described}
    raw = raw.with_folders(file.folders)
    for key, name in raw.columns.items():
        require_column(name, f"columns.{key}", list(types), file.name)
    folders = raw.values_of(file.folders)
    kinds = {key: types[name] for key, name in raw.columns.items()} | dict.fromkeys(folders, "VARCHAR")
    named = [f"{_identifier(name)} AS {key}" for key, name in raw.columns.items()]
    named += [f"{quoted(value)} AS {key}" for key, value in folders.items()]
    if part is not None:
        numbered = table.removesuffix(")") + ", file_row_number = true)"
        table = f"{numbered} WHERE file_row_number BETWEEN {part.start} AND {part.stop - 1}"
    relation = f"(SELECT {', '.join(named)} FROM {table})"
    user, item = (_id(key, kinds[key], raw, rows, file.name) for key in ("user", "item"))
    kind = kinds["time"]
    if kind == "FLOAT":
        raise ValueError(
            f"columns.time: {raw.time!r} of {file.name} is FLOAT, whose 32 bits cannot tell seconds apart: write it as "
            "DOUBLE, as an integer or as a timestamp"
        )
    unit = rows.time_unit or raw.time_unit or unit
    if unit is None:
        sample = f"SELECT time::VARCHAR FROM {relation} WHERE time IS NOT NULL LIMIT {_SAMPLE}"
        with name_file(file.name):
            unit = guess_unit([text for (text,) in connection.execute(sample).fetchall()], file.name)
    moment = instant("time", kind, unit, alternatives=rows.time_unit is None)
    if moment is None:
        raise ValueError(f"columns.time: {raw.time!r} of {file.name} is {kind}; expected a time in {unit}")
    dated = kind == "DATE" or kind.startswith("TIMESTAMP")
    parts = Row(
        user=user[0],
        item=item[0],
        seconds=moment[0],
        nanos=moment[1],
        raw=list(kinds),
        missing=f"{user[1]} OR {item[1]}",
        later_faults=later_faults({key: key for key in kinds}, raw, rows),
        title="title" if "title" in kinds else "",
    )
    read_as = "Parquet, " + (f"times as {kind}" if dated else f"times in {unit}")
    return SourceQuery(checked(relation, parts), file.name, read_as, None if dated else unit)


def _id(key: str, kind: str, raw: RawFormat, rows: RowOptions, name: str) -> tuple[str, str]:
    found = id_of(key, kind, rows.null_values)
    if found is None:
        raise ValueError(f"columns.{key}: {getattr(raw, key)!r} of {name} is {kind}; ids are text or integers")
    return found


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
