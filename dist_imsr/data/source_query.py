"""SQL for reading and checking raw rows, shared by all sources."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

FILTERED = "filtered"  # the `reason` of a valid row that the configuration excludes: neither kept nor rejected
LATEST_TIME = 4102444800  # the year 2100; milliseconds and other numbers that are no unix seconds are later
INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}


@dataclass(frozen=True)
class SourceQuery:
    """A query for the checked rows of a source, not executed yet.

    Args:
        sql: a query with the columns ``user``, ``item`` (of the ids' own type), ``time`` (BIGINT, unix seconds),
            ``reason`` (VARCHAR; NULL for a row to keep, `FILTERED`, or why the row is rejected) and ``raw`` (VARCHAR,
            the text of a rejected row), in the input's order.
        first_line: the line number of the first row.
        rejects: whether DuckDB's CSV reader lists further rejected lines in its table ``reject_errors``.
        period: the first and last unix second of the source; those of its interactions by default.
        truth: the names of tables with planted truth, under ``users`` or ``items``; their column ``raw`` is the id.
    """

    sql: str
    first_line: int = 1
    rejects: bool = False
    period: tuple[int, int] | None = None
    truth: dict[str, str] = field(default_factory=dict)


def checked(
    table: str,
    *,
    user: str,
    item: str,
    time: str,
    raw: Sequence[str],
    empty: str,
    valid: str = "FALSE",
    checks_before: dict[str, str] | None = None,
    checks_after: dict[str, str] | None = None,
) -> str:
    """The SQL of a `SourceQuery`; a row's reason is the first fault that it has.

    Args:
        table: the relation to read; it has no columns named ``reason`` and ``seconds``.
        user: an expression for the raw id.
        item: an expression for the raw id.
        time: an expression for unix seconds, NULL for a bad time.
        raw: expressions for the text of a rejected row.
        empty: a condition for rows without an id.
        valid: a condition that implies that a row has no fault, so that most rows skip the other conditions.
        checks_before: conditions by reason, tested before the common ones.
        checks_after: conditions by reason, tested after the common ones.
    """
    faults = {
        **(checks_before or {}),
        "empty id": empty,
        "non-numeric time": "seconds IS NULL",
        "negative time": "seconds < 0",
        "absurd time": f"seconds > {LATEST_TIME}",
        **(checks_after or {}),
    }
    cases = " ".join(f"WHEN {condition} THEN {quoted(reason)}" for reason, condition in faults.items())
    text = " || ',' || ".join(f"coalesce(({column})::VARCHAR, '')" for column in raw)
    return f"""
        SELECT {user} AS user, {item} AS item,
            CASE WHEN reason IS NULL THEN floor(seconds)::BIGINT END AS time,
            reason,
            CASE WHEN reason <> '{FILTERED}' THEN {text} END AS raw
        FROM (
            SELECT *, CASE WHEN {valid} THEN NULL {cases} END AS reason FROM (SELECT *, {time} AS seconds FROM {table})
        )
    """


def checked_texts(
    table: str, *, user: str, item: str, time: str, raw: Sequence[str], checks_before: dict[str, str] | None = None
) -> str:
    """`checked` for a table whose columns are all text; times are unix seconds, or dates and times."""
    empty = f"{empty_text(user)} OR {empty_text(item)}"
    seconds = text_seconds(time)
    return checked(table, user=user, item=item, time=seconds, raw=raw, empty=empty, checks_before=checks_before)


def empty_text(column: str) -> str:
    """A condition: the text column is NULL or blank."""
    return f"coalesce(trim({column}), '') = ''"


def text_seconds(column: str) -> str:
    """An expression for unix seconds (DOUBLE) from a text column.

    The text is a number, or a date and time, in UTC if it names no zone. NULL for other texts.
    """
    number = f"TRY_CAST({column} AS DOUBLE)"
    moment = f"epoch(TRY_CAST({column} AS TIMESTAMPTZ))"
    return f"CASE WHEN isnan({number}) THEN NULL ELSE coalesce({number}, {moment}) END"


def seconds(column: str, kind: str) -> str | None:
    """An expression for unix seconds from a column of DuckDB's type ``kind``; None if the type is no time."""
    if kind in INTEGERS:
        return column
    if kind in ("FLOAT", "DOUBLE") or kind.startswith("DECIMAL"):
        return f"CASE WHEN NOT isnan({column}::DOUBLE) THEN {column}::DOUBLE END"
    if kind == "VARCHAR":
        return text_seconds(column)
    return f"epoch({column})" if kind == "DATE" or kind.startswith("TIMESTAMP") else None


def csv_table(path: Path, types: dict[str, str], *, delimiter: str = ",", quote: str = "", header: bool = False) -> str:
    """A table expression for a delimited file; lines that cannot be parsed go to ``reject_errors``.

    Args:
        path: the file, ``.gz`` or not.
        types: DuckDB's type of each column, all of them in order.
        delimiter: between columns.
        quote: around a column that contains the delimiter; empty for none.
        header: whether the first line holds names.
    """
    columns = ", ".join(f"{name}: '{kind}'" for name, kind in types.items())
    return (
        f"read_csv({literal(path)}, auto_detect = false, delim = {quoted(delimiter)}, quote = {quoted(quote)}, "
        f"escape = {quoted(quote)}, header = {header}, columns = {{{columns}}}, "
        "store_rejects = true, rejects_limit = 0)"
    )


def literal(path: Path) -> str:
    """A string literal for DuckDB's readers, which would otherwise expand ``*`` and ``[``."""
    return quoted(glob.escape(str(path)))


def quoted(value: str) -> str:
    """A string literal in SQL."""
    return "'" + value.replace("'", "''") + "'"
