"""The input files of a cluster: what each is, and its pieces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dist_imsr.addresses import Address, Location
from dist_imsr.data.input_files import STDIN, InputFile, is_parquet, name_file, open_input
from dist_imsr.data.parquet_source import parquet_query
from dist_imsr.data.pieces import Piece, is_divisible, parquet_pieces, task_database, text_pieces
from dist_imsr.data.sources import SourceConfig, input_files, refuse_appended
from dist_imsr.data.staging import FileComparison, kinds_of_ids
from dist_imsr.data.text_source import text_layout
from dist_imsr.data.workspace import Database
from dist_imsr.files import digest_of

_BLOCK = 1 << 23  # bytes


@dataclass(frozen=True)
class SourceFile:
    """An input file.

    Args:
        file: the file.
        kinds: the names of the columns of ids, and of DuckDB's types of them.
        unit: of times, if it was guessed.
        pieces: in which it is read.
        digest: of its bytes.
    """

    file: InputFile
    kinds: list[tuple[str, str]]
    unit: str | None
    pieces: list[Piece]
    digest: str = ""


def find_sources(config: SourceConfig) -> list[Location]:
    """The input files of a source.

    Args:
        config: the source and its options.

    Raises:
        ValueError: naming the file, if tasks on other machines cannot read it.
    """
    if config.source == "drift":
        raise ValueError("source: drift is generated on one machine: use --engine duckdb")
    found = input_files(config)
    for path in found:
        if isinstance(path, Path) and (path == STDIN or not path.is_file()):
            raise ValueError(f"input: {path} is no regular file, which --engine spark needs: write the log to one")
    return found


def survey(path: Location, config: SourceConfig, start: Path, memory: int) -> SourceFile:
    """Finds out what a file is, and reads it once for its checksum; a remote one is copied for this.

    Args:
        path: of the file.
        config: the source and its options.
        start: the folder where relative paths begin.
        memory: of DuckDB, in bytes.

    Raises:
        ValueError: naming the file, if it has another format.
        ConnectionError: naming the address, if it cannot be reached.
    """
    with task_database(memory, config.time_zone) as (database, scratch):
        file = open_input(path, scratch, config.hive, start)
        of_parquet = config.source in ("parquet", "complete-journey")
        found = _parquet_file(file, config, database) if of_parquet else _text_file(file, config)
        address = path if isinstance(path, Address) else None
        pieces = [replace(piece, address=address) for piece in found.pieces]
        return replace(found, pieces=pieces, digest=digest_of(file.path, "xxh128"))


def _parquet_file(file: InputFile, config: SourceConfig, database: Database) -> SourceFile:
    if file.compression is not None:
        raise ValueError(f"input: {file.name} is {file.compression} around Parquet: unpack it for --engine spark")
    if not is_parquet(file):
        raise ValueError(f"input: {file.name} is no Parquet file: read text with --source csv")
    query = parquet_query(file, config.formats[0], config, database.connection)
    with name_file(file.name):
        kinds = kinds_of_ids(query, database)
    return SourceFile(file, kinds, query.time_unit, parquet_pieces(file, query.time_unit or "s"))


def _text_file(file: InputFile, config: SourceConfig) -> SourceFile:
    layout = text_layout(file, config.formats, config, config)
    kind = "BIGINT" if layout.raw.whole_ids else "VARCHAR"
    divided = is_divisible(file, layout) and not _holds(file.path, layout.quote.encode())
    unit = None if layout.raw.time_unit else layout.unit
    return SourceFile(file, [("user", kind), ("item", kind)], unit, text_pieces(file, layout, divided))


def _holds(path: Path, quote: bytes) -> bool:
    if not quote:
        return False
    with path.open("rb") as source:
        while block := source.read(_BLOCK):
            if quote in block:
                return True
    return False


def compare_files(files: Sequence[SourceFile], appended: Mapping[str, str] | None) -> None:
    """Refuses files that do not go together, or that the data hold already.

    Args:
        files: all of them.
        appended: as of `dist_imsr.data.sources.queries`.

    Raises:
        ValueError: naming the file.
    """
    others = FileComparison()
    for one in files:
        others.require_types(one.file.name, one.kinds)
        others.require_unit(one.file.name, one.unit)
        refuse_appended(one.file.name, one.digest, appended)
        others.require_other_rows(one.file.name, one.digest, one.file.folders)
