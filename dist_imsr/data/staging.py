"""The input as DuckDB tables, in the input's order, with an account of what is rejected."""

from dataclasses import dataclass

import pyarrow as pa

from dist_imsr.data.rows import FILTERED, Rows
from dist_imsr.data.workspace import Database, Phases

REJECTED_KEPT = 1000  # rows
RAW_KEPT = 1000  # characters of each
_MOST_ROWS = 2**32 - 1  # a moment has 32 bits for a row's place
_SHOWN = 200  # characters of the example in an error

_REJECTED = f"reason IS NOT NULL AND reason <> '{FILTERED}'"

# What the CSV reader finds, in our words.
_REASONS = {
    "MISSING COLUMNS": "wrong column count",
    "TOO MANY COLUMNS": "wrong column count",
    "UNQUOTED VALUE": "broken quotes",
    "LINE SIZE OVER MAXIMUM": "line too long",
    "INVALID ENCODING": "invalid encoding",
}


@dataclass(frozen=True)
class Staged:
    """What was read.

    Args:
        rows: how many, the rejected ones included.
        rejected: how many of them by reason, the most frequent first.
        examples: the first `REJECTED_KEPT` rejected ones: ``line`` int64 (a blank line above is not counted),
            ``reason``, ``raw``.
    """

    rows: int
    rejected: dict[str, int]
    examples: pa.Table


def stage(rows: Rows, name: str, max_bad_fraction: float, database: Database, phases: Phases) -> Staged:
    """Reads a source into the table ``events``: user, item, time, reason, raw; ``rowid`` is a row's place.

    Args:
        rows: the source.
        name: of the input, for errors.
        max_bad_fraction: more rejected rows than this, of all rows read, are an error.
        database: holds ``events``, and ``unparsed`` for lines that the CSV reader rejects.
        phases: is told how far it is.

    Returns:
        The account.

    Raises:
        ValueError: if there are no rows, too many, or too many bad ones.
    """
    run = database.run
    with phases.phase("read") as progress:
        run(f"CREATE TABLE events AS {rows.sql}", progress)
        _collect_unparsed(rows, database)
    [(count,)] = run("SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM unparsed)")
    every = f"SELECT reason FROM events WHERE {_REJECTED} UNION ALL SELECT reason FROM unparsed"
    reasons = run(f"SELECT reason, count(*) AS n FROM ({every}) GROUP BY reason ORDER BY n DESC, reason")
    staged = Staged(count, dict(reasons), _examples(rows.first_line, database))
    _refuse(staged, name, max_bad_fraction)
    return staged


def _collect_unparsed(rows: Rows, database: Database) -> None:
    """One row for each line that the CSV reader rejected, by its first fault."""
    database.run("CREATE TABLE unparsed (line BIGINT, reason VARCHAR, raw VARCHAR, rank BIGINT)")
    if not rows.rejects:
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
    # A staged row's line is its place plus the unparsed lines above it: those with no more sound lines above them.
    return database.table(f"""
        WITH above AS (
            SELECT line - {first_line} - rank + 1 AS sound, max(rank) AS unparsed FROM unparsed GROUP BY sound
        ), unsound AS (
            SELECT rowid AS place, reason, left(raw, {RAW_KEPT}) AS raw FROM events
            WHERE {_REJECTED} ORDER BY rowid LIMIT {REJECTED_KEPT}
        )
        SELECT {first_line} + place + coalesce(unparsed, 0) AS line, reason, raw
        FROM unsound ASOF LEFT JOIN above ON place >= sound
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
