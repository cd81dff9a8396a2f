"""What every source is made of: rows that are checked in SQL."""

import glob
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np

FILTERED = "filtered"  # the `reason` of a sound row that was not asked for: neither kept nor rejected
LATEST_TIME = 4102444800  # the year 2100: milliseconds, and other numbers that are no unix seconds, lie beyond
INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}


@dataclass(frozen=True)
class Rows:
    """The rows of a source, not read yet.

    Args:
        sql: a query with the columns ``user``, ``item`` (of the ids' own type), ``time`` (BIGINT, unix seconds),
            ``reason`` (VARCHAR; NULL for a row to keep, `FILTERED`, or why the row is rejected) and ``raw`` (VARCHAR,
            what was read of a rejected row), in the input's order.
        first_line: the line of the first row.
        rejects: whether DuckDB's CSV reader tells of further rejected lines in its table ``reject_errors``.
        period: the unix seconds that the source covers; those of the interactions themselves by default.
        truth: what is known beside the interactions: tables with a column ``raw``, the id, under ``users`` or
            ``items``.
    """

    sql: str
    first_line: int = 1
    rejects: bool = False
    period: tuple[int, int] | None = None
    truth: dict[str, str] = field(default_factory=dict)


def span_edges(period: tuple[int, int], alpha: float, spans: int) -> np.ndarray:
    """Where spans begin and end: whole seconds, each the first one at or after the exact edge.

    Args:
        period: the first and the last second.
        alpha: the part of the period that is the pre-training span.
        spans: T, the number of equal spans of the rest.

    Returns:
        ``[T + 2]`` int64; span t is ``edges[t] <= time < edges[t + 1]``, the last one closed.

    Raises:
        ValueError: if the period is too short.
    """
    first, last = period
    share = Fraction(str(alpha))
    parts = [share + (1 - share) * Fraction(span, spans) for span in range(spans + 1)]
    edges = [first, *(first + math.ceil(part * (last - first)) for part in parts)]
    if len(set(edges)) < len(edges):
        raise ValueError(f"spans: the interactions lie within {last - first} seconds, too little for {spans} spans")
    return np.array(edges, np.int64)


def checked(
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
    """The query of `Rows`; of a row's faults the first in order is its reason.

    Args:
        table: what is read; it has no columns named ``reason`` and ``seconds``.
        user: an expression for the raw id.
        item: an expression for the raw id.
        time: an expression for unix seconds, NULL where there are none.
        raw: expressions for what is shown of a rejected row.
        empty: a condition: the row lacks an id.
        sound: a condition that spares most rows the search for a fault.
        first: conditions by reason, looked at before the common ones.
        last: conditions by reason, looked at after the common ones.

    Returns:
        The SQL.
    """
    faults = {
        **(first or {}),
        "empty id": empty,
        "non-numeric time": "seconds IS NULL",
        "negative time": "seconds < 0",
        "absurd time": f"seconds > {LATEST_TIME}",
        **(last or {}),
    }
    cases = " ".join(f"WHEN {condition} THEN {quoted(reason)}" for reason, condition in faults.items())
    shown = " || ',' || ".join(f"coalesce(({column})::VARCHAR, '')" for column in raw)
    return f"""
        SELECT {user} AS user, {item} AS item,
            CASE WHEN reason IS NULL THEN floor(seconds)::BIGINT END AS time,
            reason,
            CASE WHEN reason <> '{FILTERED}' THEN {shown} END AS raw
        FROM (
            SELECT *, CASE WHEN {sound} THEN NULL {cases} END AS reason FROM (SELECT *, {time} AS seconds FROM {table})
        )
    """


def checked_texts(
    table: str, *, user: str, item: str, time: str, raw: Sequence[str], first: dict[str, str] | None = None
) -> str:
    """The query of `Rows` over a table whose columns are all text.

    Args:
        table: what is read.
        user: the column of the raw id.
        item: the column of the raw id.
        time: the column of unix seconds, or of dates and times.
        raw: the columns shown of a rejected row.
        first: conditions by reason, looked at before the common ones.

    Returns:
        The SQL.
    """
    empty = f"{empty_text(user)} OR {empty_text(item)}"
    return checked(table, user=user, item=item, time=text_seconds(time), raw=raw, empty=empty, first=first)


def empty_text(column: str) -> str:
    """The condition that a text column holds nothing but blanks.

    Args:
        column: its name.

    Returns:
        SQL, BOOLEAN.
    """
    return f"coalesce(trim({column}), '') = ''"


def text_seconds(column: str) -> str:
    """Unix seconds from a text column.

    Args:
        column: its name; it holds numbers, or dates and times, UTC where they name no zone.

    Returns:
        SQL, DOUBLE, NULL where the text is neither.
    """
    number = f"TRY_CAST({column} AS DOUBLE)"
    moment = f"epoch(TRY_CAST({column} AS TIMESTAMPTZ))"
    return f"CASE WHEN isnan({number}) THEN NULL ELSE coalesce({number}, {moment}) END"


def seconds(column: str, kind: str) -> str | None:
    """Unix seconds from a column of any type.

    Args:
        column: its name.
        kind: its type in DuckDB's words.

    Returns:
        SQL, a number, NULL where there are none; None if the type is no time.
    """
    if kind in INTEGERS:
        return column
    if kind in ("FLOAT", "DOUBLE") or kind.startswith("DECIMAL"):
        return f"CASE WHEN NOT isnan({column}::DOUBLE) THEN {column}::DOUBLE END"
    if kind == "VARCHAR":
        return text_seconds(column)
    return f"epoch({column})" if kind == "DATE" or kind.startswith("TIMESTAMP") else None


def csv_table(path: Path, types: dict[str, str], *, delimiter: str = ",", quote: str = "", header: bool = False) -> str:
    """A delimited file as a table; what does not fit goes to ``reject_errors``.

    Args:
        path: the file, ``.gz`` or not.
        types: DuckDB's type of each column, all of them in order.
        delimiter: between columns.
        quote: around a column that holds the delimiter; empty for none.
        header: whether the first line holds names.

    Returns:
        SQL for a FROM clause.
    """
    columns = ", ".join(f"{name}: '{kind}'" for name, kind in types.items())
    return (
        f"read_csv({literal(path)}, auto_detect = false, delim = {quoted(delimiter)}, quote = {quoted(quote)}, "
        f"escape = {quoted(quote)}, header = {header}, columns = {{{columns}}}, "
        "store_rejects = true, rejects_limit = 0)"
    )


def literal(path: Path) -> str:
    """A file's name for DuckDB's readers, which would take ``*`` and ``[`` for a pattern.

    Args:
        path: the file.

    Returns:
        SQL.
    """
    return quoted(glob.escape(str(path)))


def quoted(value: str) -> str:
    """A text in SQL.

    Args:
        value: the text.

    Returns:
        SQL.
    """
    return "'" + value.replace("'", "''") + "'"
