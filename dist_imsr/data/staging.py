"""Reads a source into DuckDB tables, in the input's order, and counts the rejected rows."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from dist_imsr.data.broken_quotes import BROKEN_QUOTES
from dist_imsr.data.input_files import name_file
from dist_imsr.data.plain_text import EXAMPLES, count_lines, lines_at, lines_of_records
from dist_imsr.data.source_query import LATE, REJECTED, SourceQuery
from dist_imsr.data.workspace import Database, ProgressDisplay

RAW_KEPT = 1000  # characters of each rejected row
_SHOWN = 200  # characters of the example in the error
_SCHEMA = pa.schema({"file": pa.string(), "line": pa.int64(), "reason": pa.string(), "raw": pa.string()})

# Our reasons by the error types of DuckDB's CSV reader.
_REASONS = {
    "MISSING COLUMNS": "wrong column count",
    "TOO MANY COLUMNS": "wrong column count",
    "UNQUOTED VALUE": BROKEN_QUOTES,
    "LINE SIZE OVER MAXIMUM": "line too long",
    "INVALID ENCODING": "invalid encoding",
}


@dataclass
class Staged:
    """The result of reading a source.

    Args:
        rows: the number of rows, rejected ones included.
        rejected: the number of rejected rows by reason.
        examples: the first rejected rows: ``file``, ``line`` (from 1; None if it is not known), ``reason``, ``raw``.
        read_as: how many files were read in which way.
        digests: the checksum of each file, by its name.
        period: as in `SourceQuery`; sources that state it have only one query.
        truth: as in `SourceQuery`, likewise.
    """

    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, int | None, str, str]] = field(default_factory=list)
    read_as: Counter[str] = field(default_factory=Counter)
    digests: dict[str, str] = field(default_factory=dict)
    period: tuple[int, int] | None = None
    truth: dict[str, str] = field(default_factory=dict)

    @property
    def ordered_rejected(self) -> dict[str, int]:
        """The number of rejected rows by reason, the most frequent first."""
        counts = +self.rejected
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def table(self) -> pa.Table:
        """The examples, for the folder ``rejected``."""
        columns = zip(*self.examples, strict=True) if self.examples else ([], [], [], [])
        arrays = [pa.array(column, kind) for column, kind in zip(columns, _SCHEMA.types, strict=True)]
        return pa.table(arrays, schema=_SCHEMA)


def stage(
    queries: Iterable[SourceQuery], name: str, max_bad_fraction: float, database: Database, display: ProgressDisplay
) -> Staged:
    """Reads a source into the table ``events``: user, item, time, nanos, breaks, reason, raw; ``rowid`` is the place.

    Args:
        queries: of the source's files.
        name: of the input, for errors.
        max_bad_fraction: the maximal fraction of rejected rows among all rows.
        database: receives ``events``.
        display: shows the progress.

    Raises:
        ValueError: naming the file, if it cannot be read or holds the same as another, or if there are no rows, or
            too many bad ones.
    """
    staged, files = Staged(), FileComparison()
    for query in queries:
        rows = staged.rows
        with name_file(query.name or name):
            files.require_types(query.name, kinds_of_ids(query, database))
            stage_one(query, staged, database, display)
        if staged.rows > rows:
            files.require_other_rows(query.name, query.digest, query.folders)
        files.require_unit(query.name, query.time_unit)
    refuse_bad_rows(staged, name, max_bad_fraction)
    return staged


def kinds_of_ids(query: SourceQuery, database: Database) -> list[tuple[str, str]]:
    """The names of the columns of ids, and of DuckDB's types of them."""
    return [(row[0], row[1]) for row in database.run(f"DESCRIBE {query.sql}")[:2]]


class FileComparison:
    """Refuses files that do not go together; each method is called with one file after the other."""

    def __init__(self) -> None:
        self._kinds: list[tuple[str, str]] = []
        self._units = set[str]()
        self._names: dict[tuple[Any, ...], str] = {}

    def require_types(self, name: str, kinds: list[tuple[str, str]]) -> None:
        """Refuses a file whose ids have other types than those of the files before it."""
        self._kinds = self._kinds or kinds
        for (key, kind), (_, other) in zip(kinds, self._kinds, strict=True):
            if kind != other:
                raise ValueError(f"columns.{key}: {name} has {kind}, the files before it have {other}")

    def require_other_rows(self, name: str, digest: str, folders: Mapping[str, str]) -> None:
        """Refuses a file with the bytes of another one."""
        same = self._names.setdefault((digest, *folders.items()), name)
        if same != name:
            raise ValueError(f"input: {name} holds the same rows as {same}: leave it out")

    def require_unit(self, name: str, unit: str | None) -> None:
        """Refuses a file whose times are in another unit than those before it."""
        self._units |= {unit} if unit else set()
        if len(self._units) > 1:
            units = " and ".join(sorted(self._units))
            raise ValueError(f"time_unit: {name} and the files before it differ, {units}: convert one of them")


def stage_one(query: SourceQuery, staged: Staged, database: Database, display: ProgressDisplay) -> None:
    """Adds the rows of one query to the table ``events``, which the first one makes, and to the counts.

    Args:
        query: of a file, or of a part of it.
        staged: receives the counts.
        database: receives the rows.
        display: shows the progress.
    """
    run = database.run
    first = 0
    if staged.read_as:
        [(first,)] = run("SELECT count(*) FROM events")
    with display.phase("read") as progress:
        target = "CREATE TABLE events AS" if not staged.read_as else "INSERT INTO events"
        run(f"{target} {query.sql}", progress)
    staged.period, staged.truth = query.period, query.truth
    staged.digests[query.name or query.read_as] = query.digest
    staged.read_as[query.read_as] += 1
    rows = f"FROM events WHERE rowid >= {first}"
    [(parsed, breaks)] = run(f"SELECT count(*), coalesce(sum(breaks), 0)::BIGINT {rows}")
    _collect_unparsed(query, database)
    reasons = f"SELECT reason {rows} AND {REJECTED} UNION ALL SELECT reason FROM unparsed"
    rejected = Counter(dict(run(f"SELECT reason, count(*) FROM ({reasons}) GROUP BY reason")))
    [(unparsed,)] = run("SELECT count(*) FROM unparsed")
    if query.text is not None and unparsed and breaks:
        _number_lines(query.text.path, database)
    lost = 0
    if query.text is not None and query.text.quoted:
        [(kept,)] = run(f"SELECT coalesce(sum(1 + breaks), 0)::BIGINT {rows} AND NOT ({REJECTED})")
        lines, blank = count_lines(query.text.path)
        lost = max(0, lines - blank - query.header - kept - rejected.total())
        rejected[BROKEN_QUOTES] += lost
    emptied = Counter(query.text.rejected if query.text is not None else {})
    rejected += emptied
    staged.rows += parsed + unparsed + lost + emptied.total()
    staged.rejected += rejected
    if +rejected and len(staged.examples) < EXAMPLES:
        # The lines before a row are the rows before it and the line breaks in them.
        before = "sum(breaks) OVER (ORDER BY rowid ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"
        place = f"rowid - {first}" + (f" + coalesce({before}, 0)::BIGINT" if breaks else "")
        sample = f"SELECT rowid, {place} AS place, reason, left(raw, {RAW_KEPT}) AS raw {rows}"
        sample = f"SELECT * FROM ({sample}) WHERE {REJECTED} ORDER BY rowid LIMIT {EXAMPLES}"
        examples = _examples(query, sample, lost == 0, database)
        staged.examples += examples[: EXAMPLES - len(staged.examples)]


def _collect_unparsed(query: SourceQuery, database: Database) -> None:
    """Makes a row of each line that the CSV reader rejected, with the first of its errors."""
    run = database.run
    run("CREATE OR REPLACE TABLE unparsed (line BIGINT, reason VARCHAR, raw VARCHAR, byte BIGINT)")
    if query.text is None:
        return
    cases = " ".join(f"WHEN '{error}' THEN '{reason}'" for error, reason in _REASONS.items())
    reason = f"CASE error_type::VARCHAR {cases} ELSE lower(error_type::VARCHAR) END"
    text = "coalesce(csv_line, '')"
    raw = f"left(trim({text}, chr(10) || chr(13)), {RAW_KEPT})"
    # The text, and so the first byte, may include the ends of the lines before.
    byte = f"line_byte_position + length({text}) - length(ltrim({text}, chr(10) || chr(13)))"
    place = "coalesce(column_idx, 0)"
    run(f"""
        INSERT INTO unparsed SELECT line, arg_min({reason}, {place}), arg_min({raw}, {place}), min({byte})
        FROM reject_errors GROUP BY line
    """)
    for table in ("reject_errors", "reject_scans"):  # the next file has its own
        run(f"DROP TABLE {table}")


def _number_lines(path: Path, database: Database) -> None:
    """Corrects the line numbers of rows that the CSV reader rejected, which counts rows of several lines as one."""
    found = database.table("SELECT byte FROM unparsed ORDER BY byte")
    lines = pa.table({"byte": found["byte"], "number": lines_at(path, found["byte"].to_numpy())})
    database.connection.register("numbered_lines", lines)
    database.run("UPDATE unparsed SET line = number FROM numbered_lines AS n WHERE n.byte = unparsed.byte")
    database.connection.unregister("numbered_lines")


def _examples(
    query: SourceQuery, sample: str, numbered: bool, database: Database
) -> list[tuple[str, int | None, str, str]]:
    """The first rejected rows of a file, in the order of their lines if these can be ``numbered``."""
    sampled = database.table(sample)
    places = sampled["place"].to_numpy()
    if query.text is None:
        lines = (places + 1).tolist()
    elif numbered:
        unparsed = database.table("SELECT line FROM unparsed ORDER BY line")["line"].to_numpy()
        lines = lines_of_records(query.text.path, places + query.header, unparsed).tolist()
    else:
        lines = [None] * len(places)
    found = list(zip(lines, sampled["reason"].to_pylist(), sampled["raw"].to_pylist(), strict=True))
    found += database.run(f"SELECT line, reason, raw FROM unparsed ORDER BY line LIMIT {EXAMPLES}")
    if query.text is not None:
        found += query.text.examples
    found.sort(key=lambda example: example[0] or 0)
    return [(query.name, *example) for example in found[:EXAMPLES]]


def refuse_bad_rows(staged: Staged, name: str, max_bad_fraction: float) -> None:
    """Refuses a log without rows, or with too many bad ones.

    Raises:
        ValueError: with the numbers by reason, and an example.
    """
    if staged.rows == 0:
        raise ValueError(f"input: {name} holds no rows")
    bad = staged.rejected.total()
    if bad > max_bad_fraction * staged.rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in staged.ordered_rejected.items())
        examples = [
            f"; {f'{file}, ' if file != name else ''}line {'?' if line is None else line} ({reason}): {raw[:_SHOWN]!r}"
            for file, line, reason, raw in staged.examples[:1]
        ]
        late = any(reason.startswith(LATE) for reason in staged.rejected)
        remedy = (
            "; rows from before the end of the last span are late: with --late into_next, they enter the next"
            if late
            else ""
        )
        raise ValueError(
            f"input: {name}: {bad} of {staged.rows} rows are bad, more than max_bad_fraction {max_bad_fraction:g}: "
            f"{reasons}{''.join(examples)}; read as: {', '.join(staged.read_as)}{remedy}"
        )
