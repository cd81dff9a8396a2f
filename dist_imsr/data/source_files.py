"""The input files of a cluster: what each is, as far as it can be told without reading it whole, and its pieces."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from dist_imsr.data.input_files import InputFile, is_parquet, name_file, open_input
from dist_imsr.data.parquet_source import parquet_query
from dist_imsr.data.pieces import Piece, is_divisible, parquet_pieces, text_pieces
from dist_imsr.data.sources import SourceConfig, input_files, refuse_appended
from dist_imsr.data.staging import FileComparison, kinds_of_ids
from dist_imsr.data.text_source import TextLayout, text_layout
from dist_imsr.data.workspace import Database
from dist_imsr.files import digest_of

_BLOCK = 1 << 23  # bytes


@dataclass(frozen=True)
class SourceFile:
    """An input file.

    Args:
        file: the file; its path is absolute.
        kinds: the names of the columns of ids, and of DuckDB's types of them.
        layout: of a text; None for Parquet.
        unit: of times, for Parquet.
        digest: of its bytes.
        quoted: whether it has its layout's quote.
    """

    file: InputFile
    kinds: list[tuple[str, str]]
    layout: TextLayout | None = None
    unit: str | None = None
    digest: str = ""
    quoted: bool = False

    @property
    def pieces(self) -> list[Piece]:
        """The pieces in which it is read."""
        if self.layout is None:
            return parquet_pieces(self.file, self.unit)
        return text_pieces(self.file, self.layout, is_divisible(self.file, self.layout) and not self.quoted)


def find_sources(config: SourceConfig, database: Database, scratch: Path) -> list[SourceFile]:
    """Finds out what the input files of a source are.

    Args:
        config: the source and its options.
        database: reads the types of Parquet's columns.
        scratch: a folder.

    Raises:
        ValueError: naming the file, if it has another format, or if tasks on other machines cannot read it.
    """
    if config.source == "drift":
        raise ValueError("source: drift is generated on one machine: use --engine duckdb")
    found, files = list[SourceFile](), FileComparison()
    for path in input_files(config):
        if not isinstance(path, Path) or not path.is_file():
            raise ValueError(f"input: {path} is no regular file, which --engine spark needs: write the log to one")
        opened = open_input(path, scratch, config.hive)
        file = replace(opened, path=opened.path.resolve())
        if config.source in ("parquet", "complete-journey"):
            if file.compression is not None:
                raise ValueError(
                    f"input: {file.name} is {file.compression} around Parquet: unpack it for --engine spark"
                )
            if not is_parquet(file):
                raise ValueError(f"input: {file.name} is no Parquet file: read text with --source csv")
            query = parquet_query(file, config.formats[0], config, database.connection)
            with name_file(file.name):
                kinds = kinds_of_ids(query, database)
            one, unit = SourceFile(file, kinds, unit=query.time_unit or "s"), query.time_unit
        else:
            layout = text_layout(file, config.formats, config, config)
            kind = "BIGINT" if layout.raw.whole_ids else "VARCHAR"
            one = SourceFile(file, [("user", kind), ("item", kind)], layout)
            unit = None if layout.raw.time_unit else layout.unit
        files.require_types(file.name, one.kinds)
        files.require_unit(file.name, unit)
        found.append(one)
    return found


def survey(files: Sequence[SourceFile], number: int) -> Iterator[pa.RecordBatch]:
    """Reads a file once, in a task: its checksum, and whether it has quotes.

    Args:
        files: all files.
        number: of the file.
    """
    file, layout = files[number].file, files[number].layout
    quote, quoted = (layout.quote if layout is not None else "").encode(), False
    if quote:
        with file.path.open("rb") as source:
            while not quoted and (block := source.read(_BLOCK)):
                quoted = quote in block
    yield pa.RecordBatch.from_pylist([{"file": number, "digest": digest_of(file.path, "xxh128"), "quoted": quoted}])


def refuse_known_bytes(files: Sequence[SourceFile], appended: Mapping[str, str] | None) -> None:
    """Refuses files that the data hold already, and a file with the bytes of another.

    Args:
        files: surveyed ones.
        appended: as of `dist_imsr.data.sources.queries`.
    """
    others = FileComparison()
    for one in files:
        refuse_appended(one.file.name, one.digest, appended)
        others.require_other_rows(one.file.name, one.digest, one.file.folders)
