"""SQL for reading and checking raw rows, shared by all sources."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dist_imsr.data.plain_text import PlainText, leading_blank_lines
from dist_imsr.data.sql import quoted, quoted_path
from dist_imsr.data.text_format import BLANKS, TextFormat
from dist_imsr.data.times import LATEST_TIME

BEFORE, AFTER = "before from", "until and later"  # why rows outside of a log's period are left out
LATE = "late"  # why a row from before the end of the last span is rejected, or how that reason begins
LEFT_OUT = "left out: "  # begins the `reason` of a valid row that the configuration leaves out: it is no bad row
REJECTED = f"reason IS NOT NULL AND NOT starts_with(reason, '{LEFT_OUT}')"

INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}
_TEXT_DIGITS = 18  # a DECIMAL with more may exceed BIGINT
_SHORT_LIST = 4  # DuckDB compares so many values one by one, and joins with more


@dataclass(frozen=True)
class SourceQuery:
    """A query for the checked rows of one input, not executed yet.

    Args:
        sql: a query with the columns ``user``, ``item`` (of the ids' own type), ``time`` (BIGINT, unix seconds),
            ``nanos`` (INTEGER, after the second), ``breaks`` (INTEGER, line breaks inside the row), ``reason``
            (VARCHAR; NULL for a row to keep, why it is left out, after `LEFT_OUT`, or why it is rejected), ``raw``
            (VARCHAR, the text of a rejected row) and, if it is wanted, ``title``, in the input's order. It joins
            nothing, not even by an IN with a long list, since joins lose that order.
        name: of the file, for messages.
        read_as: how the file is read, in words.
        time_unit: of the file's times, if they are no dates.
        text: the file that DuckDB's CSV reader reads; it lists further rejected lines in its table ``reject_errors``.
        header: whether the text's first line holds names.
        period: the first and last unix second of the source; those of its interactions by default.
        digest: of the file's bytes; empty for generated rows.
        folders: as in `InputFile`.
        truth: the names of tables with planted truth, under ``users`` or ``items``; their column ``raw`` is the id.
    """

    sql: str
    name: str = ""
    read_as: str = ""
    time_unit: str | None = None
    text: PlainText | None = None
    header: bool = False
    period: tuple[int, int] | None = None
    digest: str = ""
    folders: dict[str, str] = field(default_factory=dict)
    truth: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """SQL expressions for the parts of a row of a relation.

    Args:
        user: the raw id.
        item: the raw id.
        seconds: whole unix seconds, as of `dist_imsr.data.times.instant`.
        nanos: after the second.
        raw: for the text of a rejected row.
        faults: conditions by reason, tested before the common ones; NULL counts as false.
        later_faults: conditions by reason, tested after the common ones.
        missing: a condition for rows without an id.
        certain_ids: a condition that implies that both ids are valid, so that most rows skip the other conditions.
        breaks: the number of line breaks inside the row.
        title: of the item; empty if it is not wanted.
    """

    user: str
    item: str
    seconds: str
    nanos: str
    raw: Sequence[str]
    missing: str
    certain_ids: str = "FALSE"
    faults: dict[str, str] = field(default_factory=dict)
    later_faults: dict[str, str] = field(default_factory=dict)
    breaks: str = "0"
    title: str = ""


def checked(relation: str, row: Row) -> str:
    """The SQL of a `SourceQuery`; a row's reason is the first fault that it has.

    Args:
        relation: to read; it has no columns of the names below.
        row: its parts; its conditions may use ``raw_user``, ``raw_item``, ``seconds`` and ``nanos``.
    """
    faults = {
        **row.faults,
        "empty id": row.missing,
        "non-numeric time": "seconds IS NULL",
        "negative time": "seconds < 0",
        "absurd time": f"seconds > {LATEST_TIME}",
    }
    later = _cases(row.later_faults)
    certain = f"{row.certain_ids} AND seconds BETWEEN 0 AND {LATEST_TIME}"
    reason = f"CASE WHEN {certain} THEN {later} {_whens(faults)} ELSE {later} END"
    text = " || ',' || ".join(f"coalesce(({column})::VARCHAR, '')" for column in row.raw)
    title = f", ({row.title})::VARCHAR AS title" if row.title else ""
    return f"""
        SELECT raw_user AS user, raw_item AS item,
            CASE WHEN reason IS NULL THEN seconds::BIGINT END AS time,
            nanos::INTEGER AS nanos,
            {row.breaks}::INTEGER AS breaks,
            reason,
            CASE WHEN {REJECTED} THEN {text} END AS raw{title}
        FROM (
            SELECT *, {reason} AS reason
            FROM (
                SELECT *, {row.user} AS raw_user, {row.item} AS raw_item, {row.seconds} AS seconds, {row.nanos} AS nanos
                FROM {relation}
            )
        )
    """


def _cases(conditions: dict[str, str]) -> str:
    return f"CASE {_whens(conditions)} END" if conditions else "NULL"


def _whens(conditions: dict[str, str]) -> str:
    return " ".join(f"WHEN {condition} THEN {quoted(reason)}" for reason, condition in conditions.items())


def missing_text(column: str, null_values: Sequence[str]) -> str:
    """A condition: the text of an id is NULL or blank, or means that there is none."""
    blank = f"coalesce(trim({column}, chr(9) || ' '), '') = ''"
    return f"({blank} OR {one_of(column, null_values)})" if null_values else blank


def certain_text(column: str, null_values: Sequence[str]) -> str:
    """A condition that is cheap and implies that `missing_text` is false."""
    return f"NOT {missing_text(column, null_values)}" if null_values else f"ascii({column}) > 32"


def id_of(column: str, kind: str, null_values: Sequence[str]) -> tuple[str, str] | None:
    """SQL for an id as it is, and for the condition that it is missing.

    Args:
        column: an expression.
        kind: DuckDB's type of it.
        null_values: texts that mean a missing id.

    Returns:
        Both expressions; None if the type is none of ids.
    """
    if kind in INTEGERS:
        missing = f"({column} IS NULL OR {one_of(f'{column}::VARCHAR', null_values)})"
        return column, missing if null_values else f"{column} IS NULL"
    if kind.startswith("DECIMAL"):
        digits, scale = (int(part) for part in kind.removeprefix("DECIMAL(").removesuffix(")").split(","))
        if scale:
            return None
        if digits <= _TEXT_DIGITS:
            return id_of(f"{column}::BIGINT", "BIGINT", null_values)
    elif kind not in ("VARCHAR", "UUID", "HUGEINT", "UHUGEINT"):
        return None
    text = column if kind == "VARCHAR" else f"{column}::VARCHAR"
    return text, missing_text(text, null_values)


def csv_relation(text: PlainText, form: TextFormat) -> str:
    """A relation of the columns c0, c1, .. of a text; lines that cannot be parsed go to ``reject_errors``.

    Args:
        text: the file.
        form: how its columns are written.
    """
    delimiter = "\t" if form.delimiter == BLANKS else form.delimiter
    columns = ", ".join(f"c{place}: 'VARCHAR'" for place in range(form.width))
    return (
        f"read_csv({quoted_path(text.path)}, auto_detect = false, delim = {quoted(delimiter)}, "
        f"quote = {quoted(form.quote)}, escape = {quoted(form.escape)}, header = {form.header}, "
        f"skip = {leading_blank_lines(text.path)}, "
        f"columns = {{{columns}}}, hive_partitioning = false, store_rejects = true, rejects_limit = 0)"
    )


def breaks_in(columns: Sequence[str]) -> str:
    """SQL for the number of line breaks in text columns."""
    count = "CASE WHEN contains({0}, chr(10)) THEN length({0}) - length(replace({0}, chr(10), '')) ELSE 0 END"
    return " + ".join(map(count.format, columns))


def one_of(column: str, values: Sequence[str]) -> str:
    """A condition: the text column is one of some values, of which there is at least one; false for NULL."""
    listed = ", ".join(map(quoted, values))
    if len(values) <= _SHORT_LIST:
        return f"coalesce({column} IN ({listed}), FALSE)"
    return f"coalesce(list_contains([{listed}], {column}), FALSE)"
