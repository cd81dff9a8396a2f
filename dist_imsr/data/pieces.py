"""Pieces of input files, each read by one task of a cluster with the code that reads whole files on one machine.

A text is split at line ends, if its lines can be told without reading from its beginning: uncompressed UTF-8 without
quotes. A Parquet file is split between row groups. All other files are one piece each.
"""

import codecs
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from dist_imsr.addresses import Address
from dist_imsr.data.dataset import Dataset
from dist_imsr.data.input_files import PARQUET, InputFile, download, name_file
from dist_imsr.data.parquet_source import parquet_query
from dist_imsr.data.plain_text import EXAMPLES
from dist_imsr.data.remote import RemoteFolder
from dist_imsr.data.source_query import LEFT_OUT, SourceQuery
from dist_imsr.data.sources import SourceConfig
from dist_imsr.data.sql import quoted_path
from dist_imsr.data.staging import Staged, stage_one
from dist_imsr.data.storage import task_folder
from dist_imsr.data.text_source import TextLayout, text_query
from dist_imsr.data.workspace import Database, ProgressDisplay

PLACE_BITS = 40  # the lower bits of a rowid: the row's place in its piece; the others are the piece's number
_PIECE = 64 * 2**20  # bytes
_LONGEST_LINE = 2**26  # bytes
_BLOCK = 2**23  # bytes
_UTF8 = ("utf-8", "utf-8-sig")


@dataclass(frozen=True)
class Piece:
    """A part of an input file.

    Args:
        file: the file; its path is absolute, and means nothing if there is an address.
        layout: of a text; None for Parquet.
        unit: of times, for Parquet.
        part: bytes of a text, or places of Parquet's rows; None for the whole file.
        known: the data set in which these rows wait, under the file's name.
        address: of a remote file.
    """

    file: InputFile
    layout: TextLayout | None = None
    unit: str | None = None
    part: range | None = None
    known: Dataset | None = None
    address: Address | None = None

    @property
    def begins(self) -> bool:
        """Whether the file begins with this piece."""
        return self.part is None or self.part.start == 0


@dataclass(frozen=True)
class Summary:
    """What a task found in its piece, besides the rows.

    Args:
        rows: as in `Staged`.
        rejected: likewise.
        read_as: how the piece was read.
        lines: the number of lines of a part of a text.
        error: why the piece cannot be read.
        unreachable: whether it is remote, and could not be reached.
    """

    rows: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    read_as: str = ""
    lines: int = 0
    error: str = ""
    unreachable: bool = False


def is_divisible(file: InputFile, layout: TextLayout) -> bool:
    """Whether a text can be read from the middle, if it has no quotes."""
    return file.compression is None and codecs.lookup(layout.encoding).name in _UTF8


def text_pieces(file: InputFile, layout: TextLayout, divided: bool) -> list[Piece]:
    """The pieces of a text file; a part stands for the lines that begin in it.

    Args:
        file: the file.
        layout: what it is.
        divided: whether there may be several.
    """
    whole = Piece(file, layout)
    if not divided:
        return [whole]
    size = file.path.stat().st_size
    return [replace(whole, part=range(first, min(first + _PIECE, size))) for first in range(0, size, _PIECE)]


def parquet_pieces(file: InputFile, unit: str | None) -> list[Piece]:
    """The pieces of a Parquet file.

    Args:
        file: the file.
        unit: of times.
    """
    with name_file(file.name):
        metadata = pq.read_metadata(file.path)
    whole, pieces, first, size = Piece(file, unit=unit), list[Piece](), 0, 0
    row = 0
    for group in _groups(metadata):
        row, size = row + group.num_rows, size + group.total_byte_size
        if size >= _PIECE:
            pieces.append(replace(whole, part=range(first, row)))
            first, size = row, 0
    if row > first or not pieces:
        pieces.append(replace(whole, part=range(first, row)))
    return pieces


def _groups(metadata: pq.FileMetaData) -> Iterator[pq.RowGroupMetaData]:
    return map(metadata.row_group, range(metadata.num_row_groups))


@contextlib.contextmanager
def task_database(memory: int, time_zone: str) -> Iterator[tuple[Database, Path]]:
    """A database of one task, and a folder for temporary files.

    Args:
        memory: of DuckDB, in bytes.
        time_zone: of dates that name none.
    """
    with (
        task_folder() as folder,
        Database(folder, memory, 1, time_zone) as database,
        database.scratch() as scratch,
    ):
        yield database, scratch


def read_piece(
    piece: Piece, number: int, config: SourceConfig, memory: int, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Reads and checks the rows of a piece.

    Args:
        piece: the piece.
        number: of the piece, in the input's order.
        config: the source and its options.
        memory: of DuckDB, in bytes.
        schema: of the batches.

    Yields:
        The rows that are not rejected, with a ``rowid`` that orders those of all pieces; then a row with the summary
        and the examples alone, as JSON.
    """
    staged, summary = Staged(), Summary()
    with (
        task_database(memory, config.time_zone) as (database, scratch),
        ProgressDisplay(Console(quiet=True)) as display,
    ):
        try:
            query, lines = _query(piece, config, database, scratch)
            if query is not None:
                with name_file(piece.file.name):
                    stage_one(query, staged, database, display)
                yield from _rows(number, config, database, schema)
                summary = Summary(staged.rows, dict(staged.rejected), query.read_as, lines)
        except (ValueError, OSError) as error:
            summary = Summary(error=str(error), unreachable=isinstance(error, OSError))
    values = {
        "rowid": number << PLACE_BITS,
        "summary": json.dumps(asdict(summary)),
        "examples": json.dumps([example[1:] for example in staged.examples]),
    }
    yield pa.RecordBatch.from_pylist([values], schema)


def _query(piece: Piece, config: SourceConfig, database: Database, scratch: Path) -> tuple[SourceQuery | None, int]:
    """The query of a piece, and the number of its lines; None if it has none."""
    if piece.known is not None:
        columns = "user, item, time, 0 AS nanos, 0 AS breaks"
        columns += "".join(f", NULL::VARCHAR AS {name}" for name in ("reason", "raw", "title"))
        relation = f"read_parquet({quoted_path(piece.known.local(piece.file.name))}, hive_partitioning = false)"
        return SourceQuery(f"SELECT {columns} FROM {relation}"), 0
    layout, lines = piece.layout, 0
    if layout is not None and piece.part is not None:
        file, lines = _copy_lines(piece, piece.part, scratch / "part")
        if not lines:
            return None, 0
        if not piece.begins and layout.form is not None:
            layout = replace(layout, form=replace(layout.form, header=False))
    elif piece.address is None:
        file = piece.file
    elif piece.part is not None:
        file = replace(piece.file, path=_copy_groups(piece, piece.part, scratch / "part"))
    else:
        file = replace(piece.file, path=download(piece.address, scratch))
    if layout is None:
        return parquet_query(file, config.formats[0], config, database.connection, piece.unit, piece.part), 0
    return text_query(file, layout, config, scratch, lambda done: None), lines


def _open(piece: Piece) -> BinaryIO:
    return piece.file.path.open("rb") if piece.address is None else RemoteFolder(piece.address).open()


def _copy_groups(piece: Piece, part: range, path: Path) -> Path:
    """Copies the row groups of a part of a Parquet file to their places in a file that has nothing else."""
    with name_file(piece.file.name), _open(piece) as source, path.open("wb") as sink:
        metadata = pq.read_metadata(source)
        size = source.seek(0, os.SEEK_END)
        footer = size - metadata.serialized_size - 8  # its length and the magic bytes follow it
        wanted, row = [range(len(PARQUET)), range(footer, size)], 0
        for group in _groups(metadata):
            if row in part:
                chunks = [group.column(column) for column in range(group.num_columns)]
                starts = [min(one.data_page_offset, one.dictionary_page_offset or size) for one in chunks]
                ends = [at + one.total_compressed_size for at, one in zip(starts, chunks, strict=True)]
                wanted.append(range(min(starts), max(ends)))
            row += group.num_rows
        for extent in wanted:
            source.seek(extent.start)
            sink.seek(extent.start)
            for place in range(extent.start, extent.stop, _BLOCK):
                sink.write(source.read(min(_BLOCK, extent.stop - place)))
    return path


def _copy_lines(piece: Piece, part: range, path: Path) -> tuple[InputFile, int]:
    """Copies the lines that begin in a part of a file; returns the copy, and the number of lines."""
    file = piece.file
    with name_file(file.name), _open(piece) as source, path.open("wb") as sink:
        first, end = (_line_from(source, position, file.name) for position in (part.start, part.stop))
        source.seek(first)
        lines, block = 0, b""
        while source.tell() < end:
            block = source.read(min(_BLOCK, end - source.tell()))
            lines += block.count(b"\n")
            sink.write(block)
    return replace(file, path=path), lines + (block[-1:] not in (b"\n", b""))


def _line_from(source: BinaryIO, position: int, name: str) -> int:
    """Where the first line begins that does not begin before a position."""
    if not position:
        return 0
    source.seek(position - 1)
    line = source.readline(_LONGEST_LINE)
    if len(line) == _LONGEST_LINE:
        raise ValueError(f"input: {name} has a line of more than {_LONGEST_LINE >> 20} MiB: is it a log?")
    return int(source.tell())


def _rows(number: int, config: SourceConfig, database: Database, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    title = "title" if config.columns.title is not None else "NULL::VARCHAR AS title"
    _, batches = database.stream(
        f"SELECT user, item, time, nanos, reason, {title}, {number << PLACE_BITS} + rowid AS rowid, "
        "NULL::VARCHAR AS summary, NULL::VARCHAR AS examples FROM events "
        f"WHERE reason IS NULL OR starts_with(reason, '{LEFT_OUT}')"
    )
    for batch in batches:
        yield batch.cast(schema)


def merged(
    pieces: list[Piece], summaries: list[Summary], examples: Iterator[list[tuple[int | None, str, str]]]
) -> Staged:
    """What the pieces of all files hold.

    Args:
        pieces: in order.
        summaries: one for each.
        examples: of each piece that has rejected rows; no more are read than are kept.
    """
    staged, line = Staged(), 0
    for piece, summary in zip(pieces, summaries, strict=True):
        line = 0 if piece.begins else line
        if piece.begins:
            staged.read_as[summary.read_as] += 1
        staged.rows += summary.rows
        staged.rejected.update(summary.rejected)
        if summary.rejected and len(staged.examples) < EXAMPLES:
            before = line if piece.part is None or piece.layout is not None else piece.part.start
            for at, reason, raw in next(examples):
                number = None if at is None else before + at
                staged.examples.append((piece.file.name, number, reason, raw))
        line += summary.lines
    del staged.examples[EXAMPLES:]
    return staged
