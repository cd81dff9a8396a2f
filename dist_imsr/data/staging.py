"""Reads a source into DuckDB tables, in the input's order, and counts the rejected rows."""

from dataclasses import dataclass

import pyarrow as pa

from dist_imsr.data.source_query import FILTERED, SourceQuery
from dist_imsr.data.workspace import Database, ProgressDisplay

REJECTED_KEPT = 1000  # rows
RAW_KEPT = 1000  # characters of each rejected row
_MOST_ROWS = 2**32 - 1  # a moment has 32 bits for a row's place
_SHOWN = 200  # characters of the example in the error

_REJECTED = f"reason IS NOT NULL AND reason <> '{FILTERED}'"

# Our reasons by the error types of DuckDB's CSV reader.
_REASONS = {
    "MISSING COLUMNS": "wrong column count",
    "TOO MANY COLUMNS": "wrong column count",
    "UNQUOTED VALUE": "broken quotes",
    "LINE SIZE OVER MAXIMUM": "line too long",
    "INVALID ENCODING": "invalid encoding",
}


@dataclass(frozen=True)
class Staged:
    """The result of reading a source.

    Args:
        rows: the number of rows, rejected ones included.
        rejected: the number of rejected rows by reason, the most frequent first.
        examples: the first `REJECTED_KEPT` rejected rows: ``line`` int64 (blank lines do not count), ``reason``,
            ``raw``.
    """

    rows: int
    rejected: dict[str, int]
    examples: pa.Table


def stage(
    query: SourceQuery, name: str, max_bad_fraction: float, database: Database, display: ProgressDisplay
) -> Staged:
    """Reads a source into the table ``events``: user, item, time, reason, raw; ``rowid`` is the row's place.

    Args:
        query: of the source.
        name: of the input, for errors.
        max_bad_fraction: the maximal fraction of rejected rows among all rows.
        database: receives ``events``, and ``unparsed`` with the lines that the CSV reader rejects.
        display: shows the progress.

    Raises:
        ValueError: if there are no rows, too many, or too many bad ones.
    """
    run = database.run
    with display.phase("read") as progress:
        run(f"CREATE TABLE events AS {query.sql}", progress)
        _collect_unparsed(query, database)
    [(count,)] = run("SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM unparsed)")
    every = f"SELECT reason FROM events WHERE {_REJECTED} UNION ALL SELECT reason FROM unparsed"
    reasons = run(f"SELECT reason, count(*) AS n FROM ({every}) GROUP BY reason ORDER BY n DESC, reason")
    staged = Staged(count, dict(reasons), _examples(query.first_line, database))
    _refuse(staged, name, max_bad_fraction)
    return staged


def _collect_unparsed(query: SourceQuery, database: Database) -> None:
    """Makes a row of each line that the CSV reader rejected, with the first of its errors."""
    database.run("CREATE TABLE unparsed (line BIGINT, reason VARCHAR, raw VARCHAR, rank BIGINT)")
    if not query.rejects:
        return
    cases = " ".join(f"WHEN '{error}' THEN '{reason}'" for error, reason in _REASONS.items())
    column = "CASE WHEN column_name = 'time' THEN 'non-numeric time' ELSE 'non-numeric id' END"
    reason = f"CASE error_type::VARCHAR {cases} WHEN 'CAST' THEN {column} ELSE lower(error_type::VARCHAR) END"
    raw = f"left(trim(coalesce(csv_line, ''), chr(10) || chr(13)), {RAW_KEPT})"
    place = "coalesce(column_idx, 0)"
    database.run(f"""
        INSERT INTO unparsed SELECT *, row_number() OVER (ORDER BY line) FROM (
            SELECT line, arg_min({reason}, {place}), arg_min({raw}, {place}) FROM reject_errors GROUP BY line)
    """)


def _examples(first_line: int, database: Database) -> pa.Table:
    # The line of a row is its place plus the number of unparsed lines above it, i.e. of those with at most so many
    # parsed lines above them.
    return database.table(f"""
        WITH above AS (
            SELECT line - {first_line} - rank + 1 AS parsed, max(rank) AS unparsed FROM unparsed GROUP BY parsed
        ), rejected AS (
            SELECT rowid AS place, reason, left(raw, {RAW_KEPT}) AS raw FROM events
            WHERE {_REJECTED} ORDER BY rowid LIMIT {REJECTED_KEPT}
        )
        SELECT {first_line} + place + coalesce(unparsed, 0) AS line, reason, raw
        FROM rejected ASOF LEFT JOIN above ON place >= parsed
        UNION ALL (SELECT line, reason, raw FROM unparsed ORDER BY line LIMIT {REJECTED_KEPT})
        ORDER BY line LIMIT {REJECTED_KEPT}
    """)


def _refuse(staged: Staged, name: str, max_bad_fraction: float) -> None:
    if staged.rows == 0:
        raise ValueError(f"input: {name} holds no rows")
    if staged.rows > _MOST_ROWS:
        raise ValueError(f"input: {name} holds {staged.rows} rows; at most {_MOST_ROWS} can be prepared")
    bad = sum(staged.rejected.values())
    if bad > max_bad_fraction * staged.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in staged.rejected.items())
        row = staged.examples.slice(0, 1).to_pylist()[0]
        raise ValueError(
            f"input: {name}: {bad} of {staged.rows} rows are bad, more than max_bad_fraction {max_bad_fraction:g}: "
            f"{reasons}; line {row['line']} ({row['reason']}): {row['raw'][:_SHOWN]!r}"
        )
