"""Arrow and Parquet files, which appear whole and whose bytes depend on the rows alone."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dist_imsr.addresses import Location
from dist_imsr.data.manifest import Files, manifest_entry
from dist_imsr.data.remote import RemoteFolder
from dist_imsr.data.storage import new_file
from dist_imsr.files import whole_file

_ROW_GROUP = 2**20  # rows of Parquet files


def write_batch(folder: Location, name: str, batch: pa.RecordBatch) -> dict[str, Any]:
    """Writes an Arrow file of one batch; returns its entry in a manifest.

    Args:
        folder: of the data set.
        name: the path in it.
        batch: the rows.
    """
    with new_file(folder, name) as path:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as file:
            file.write_batch(batch)
        return manifest_entry(path, batch.num_rows)


def read_batch(folder: Location, name: str) -> pa.RecordBatch:
    """The rows of an Arrow file of one batch; a local one is mapped.

    Args:
        folder: of the data set.
        name: the path in it.
    """
    if isinstance(folder, Path):
        return pa.ipc.open_file(pa.memory_map(str(folder / name))).get_batch(0)
    return pa.ipc.open_file(pa.py_buffer(RemoteFolder(folder).read(name))).get_batch(0)


def write_table(path: Path, parts: Iterable[Any], schema: pa.Schema | None = None) -> int:
    """Streams record batches or tables into a Parquet file, whose bytes depend on the rows alone.

    Args:
        path: the file.
        parts: at least one, unless the schema is given.
        schema: of the rows.

    Returns:
        The number of rows.
    """
    rest = iter(parts)
    first = [next(rest)] if schema is None else []
    with whole_file(path) as partial:
        return _write_parquet(partial, itertools.chain(first, rest), schema or first[0].schema)


def _write_parquet(path: Path, parts: Iterable[Any], schema: pa.Schema) -> int:
    rows = 0
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:  # unique ids
        for group in _row_groups(parts, schema):
            writer.write_table(group)
            rows += group.num_rows
    return rows


def _row_groups(parts: Iterable[Any], schema: pa.Schema) -> Iterator[pa.Table]:
    """Joins and splits rows into tables of `_ROW_GROUP` rows, each of one chunk; no rows are one empty table."""
    buffer, started = schema.empty_table(), False
    for part in parts:
        table = pa.Table.from_batches([part]) if isinstance(part, pa.RecordBatch) else part
        buffer = pa.concat_tables([buffer, table])
        while buffer.num_rows >= _ROW_GROUP:
            yield buffer.slice(0, _ROW_GROUP).combine_chunks()
            buffer, started = buffer.slice(_ROW_GROUP), True
    if buffer.num_rows or not started:
        yield buffer.combine_chunks()


def write_rows(folder: Location, name: str, schema: pa.Schema, parts: Iterable[Any]) -> Files:
    """Writes a Parquet file; returns its entry by its path in the folder.

    Args:
        folder: of the data set.
        name: the path in it.
        schema: of the rows.
        parts: record batches or tables.
    """
    with new_file(folder, name) as path:
        return {name: manifest_entry(path, _write_parquet(path, parts, schema))}
