"""Pieces of input files, each read by one task of a cluster with the code that reads whole files on one machine.

A text is split at line ends, if its lines can be told without reading from its beginning: uncompressed UTF-8 without
quotes. A Parquet file is split between row groups. All other files are one piece each.
"""

import codecs
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from dist_imsr.data.input_files import InputFile, name_file
from dist_imsr.data.parquet_source import parquet_query
from dist_imsr.data.plain_text import EXAMPLES
from dist_imsr.data.source_query import LEFT_OUT, SourceQuery
from dist_imsr.data.sources import SourceConfig
from dist_imsr.data.sql import quoted_path
from dist_imsr.data.staging import Staged, stage_one
from dist_imsr.data.text_source import TextLayout, text_query
from dist_imsr.data.workspace import Database, ProgressDisplay

PLACE_BITS = 40  # the lower bits of a rowid: the row's place in its piece; the others are the piece's number
_PIECE = 64 * 2**20  # bytes
_LONGEST_LINE = 2**26  # bytes
_UTF8 = ("utf-8", "utf-8-sig")


@dataclass(frozen=True)
class Piece:
    """A part of an input file.

    Args:
        file: the file; its path is absolute.
        layout: of a text; None for Parquet.
        unit: of times, for Parquet.
        part: bytes of a text, or places of Parquet's rows; None for the whole file.
        waiting: whether these are the rows that wait in a data set.
    """

    file: InputFile
    layout: TextLayout | None = None
    unit: str | None = None
    part: range | None = None
    waiting: bool = False

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
    """

    rows: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    read_as: str = ""
    lines: int = 0
    error: str = ""


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
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        row, size = row + group.num_rows, size + group.total_byte_size
        if size >= _PIECE:
            pieces.append(replace(whole, part=range(first, row)))
            first, size = row, 0
    if row > first or not pieces:
        pieces.append(replace(whole, part=range(first, row)))
    return pieces


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
    local = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0] or None  # which Spark deletes with the executor
    with tempfile.TemporaryDirectory(prefix="dist_imsr-", dir=local) as folder:
        with (
            Database(Path(folder), memory, 1, config.time_zone) as database,
            ProgressDisplay(Console(quiet=True)) as display,
            database.scratch() as scratch,
        ):
            try:
                query, lines = _query(piece, config, database, scratch)
                if query is not None:
                    with name_file(piece.file.name):
                        stage_one(query, staged, database, display)
                    yield from _rows(number, config, database, schema)
                    summary = Summary(staged.rows, dict(staged.rejected), query.read_as, lines)
            except ValueError as error:
                summary = Summary(error=str(error))
    values = {
        "rowid": number << PLACE_BITS,
        "summary": json.dumps(asdict(summary)),
        "examples": json.dumps([example[1:] for example in staged.examples]),
    }
    yield pa.RecordBatch.from_pylist([values], schema)


def _query(piece: Piece, config: SourceConfig, database: Database, scratch: Path) -> tuple[SourceQuery | None, int]:
    """The query of a piece, and the number of its lines; None if it has none."""
    file = piece.file
    if piece.waiting:
        columns = "user, item, time, 0 AS nanos, 0 AS breaks, NULL::VARCHAR AS reason, NULL::VARCHAR AS raw"
        relation = f"read_parquet({quoted_path(file.path)}, hive_partitioning = false)"
        return SourceQuery(f"SELECT {columns} FROM {relation}"), 0
    if piece.layout is None:
        raw = config.formats[0]
        return parquet_query(file, raw, config, database.connection, piece.unit, piece.part), 0
    layout, lines = piece.layout, 0
    if piece.part is not None:
        file, lines = _copy_lines(file, piece.part, scratch / "part")
        if not lines:
            return None, 0
        if not piece.begins and layout.form is not None:
            layout = replace(layout, form=replace(layout.form, header=False))
    return text_query(file, layout, config, scratch, lambda done: None), lines


def _copy_lines(file: InputFile, part: range, path: Path) -> tuple[InputFile, int]:
    """Copies the lines that begin in a part of a file; returns the copy, and the number of lines."""
    with name_file(file.name), file.path.open("rb") as source, path.open("wb") as sink:
        first, end = (_line_from(source, position) for position in (part.start, part.stop))
        source.seek(first)
        lines, block = 0, b""
        while source.tell() < end:
            block = source.read(min(2**23, end - source.tell()))
            lines += block.count(b"\n")
            sink.write(block)
    return replace(file, path=path), lines + (block[-1:] not in (b"\n", b""))


def _line_from(source: IO[bytes], position: int) -> int:
    """Where the first line begins that does not begin before a position."""
    if not position:
        return 0
    source.seek(position - 1)
    line = source.readline(_LONGEST_LINE)
    if len(line) == _LONGEST_LINE:
        raise ValueError(f"input: {source.name} has a line of more than {_LONGEST_LINE >> 20} MiB: is it a log?")
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
