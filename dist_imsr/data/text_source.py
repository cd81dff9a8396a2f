"""Text files as queries: columns between delimiters, or a JSON object a line."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_imsr.data.broken_quotes import set_aside_broken_quotes
from dist_imsr.data.input_files import InputFile
from dist_imsr.data.plain_text import PlainText, encoding_of, head_lines, plain_text
from dist_imsr.data.raw_formats import RawFormat
from dist_imsr.data.row_options import RowOptions
from dist_imsr.data.source_query import (
    AFTER,
    BEFORE,
    LATE,
    LEFT_OUT,
    Row,
    SourceQuery,
    breaks_in,
    certain_text,
    checked,
    csv_relation,
    missing_text,
    one_of,
)
from dist_imsr.data.sql import quoted
from dist_imsr.data.text_format import BLANKS, TextFormat, TextOptions, guess_format
from dist_imsr.data.times import guess_unit, instant

_UNUSED = "\x01"  # no valid JSON contains a bare control character, so a whole line is one column


@dataclass(frozen=True)
class TextLayout:
    """What a text file is, as far as its first lines say.

    Args:
        encoding: of the text.
        raw: the format of the source.
        unit: of times.
        form: how columns are written; None for lines of JSON.
    """

    encoding: str
    raw: RawFormat
    unit: str
    form: TextFormat | None

    @property
    def quote(self) -> str:
        """The quote around values; empty for none."""
        return self.form.quote if self.form is not None else ""


def text_layout(file: InputFile, formats: Sequence[RawFormat], options: TextOptions, rows: RowOptions) -> TextLayout:
    """Finds out what a text file is.

    Args:
        file: the file.
        formats: of the source.
        options: how the file is written, as far as it is stated.
        rows: which rows count.

    Raises:
        ValueError: naming the file, if it cannot be read or has another format.
    """
    encoding = encoding_of(file, options.encoding)
    lines = head_lines(file, encoding)
    objects = 2 * sum(line.lstrip().startswith("{") for line in lines) > len(lines)
    if lines and lines[0].lstrip().startswith("["):
        raise ValueError(f"input: {file.name} begins like a JSON array: write one JSON object a line")
    formats = [raw for raw in formats if not _lacking(raw, rows)] or _refuse_lacking(formats, rows, file.name)
    candidates = [raw.with_folders(file.folders) for raw in formats if raw.json == objects]
    if not candidates:
        expected = "; or ".join(raw.expected for raw in formats)
        kind = "lines of JSON" if objects else "no JSON"
        raise ValueError(f"input: {file.name} has {kind}, but expected are {expected}")
    if objects:
        raw = _format_of_objects(lines, candidates, file.name)
        return TextLayout(encoding, raw, rows.time_unit or raw.time_unit or "s", None)
    form, raw = guess_format(lines, options, candidates, rows.time_unit, file.name)
    unit = rows.time_unit or raw.time_unit
    if unit is None:
        places, folders = form.places or {}, raw.values_of(file.folders)
        body = [row for row in form.rows(lines)[form.header :] if len(row) == form.width]
        times = [folders["time"]] if "time" in folders else [row[places["time"]] for row in body]
        unit = guess_unit(times, file.name)
    return TextLayout(encoding, raw, unit, form)


def text_query(
    file: InputFile, layout: TextLayout, rows: RowOptions, scratch: Path, progress: Callable[[float], None]
) -> SourceQuery:
    """A query for a text file, or for a part of one.

    Args:
        file: the file.
        layout: what it is.
        rows: which rows count.
        scratch: a folder for copies of the file.
        progress: called with the fraction that is read, if the file is copied.

    Returns:
        A query with text ids, or BIGINT ones for formats with whole ids.

    Raises:
        ValueError: naming the file, if it cannot be read.
    """
    form, encoding = layout.form, layout.encoding
    if form is None:
        return _json_query(plain_text(file, encoding, False, "", scratch, progress), file, layout, rows)
    text = plain_text(file, encoding, form.delimiter == BLANKS, form.quote, scratch, progress)
    text = set_aside_broken_quotes(text, form, scratch, progress)
    form = form if text.quoted else form.without_quotes()
    columns = [f"c{place}" for place in range(form.width)]
    raw = layout.raw
    cells = {key: columns[place] for key, place in (form.places or {}).items()}
    cells |= {key: quoted(value) for key, value in raw.values_of(file.folders).items()}
    breaks = breaks_in(columns) if text.quoted else "0"
    alternatives = rows.time_unit is None and raw.time_unit is None
    row = text_row(cells, raw, rows, layout.unit, alternatives=alternatives, raw_text=columns, breaks=breaks)
    return SourceQuery(
        checked(csv_relation(text, form), row),
        name=file.name,
        read_as=f"{form}, {encoding}, times in {layout.unit}",
        time_unit=None if raw.time_unit else layout.unit,
        text=text,
        header=form.header,
    )


def text_row(
    cells: dict[str, str],
    raw: RawFormat,
    rows: RowOptions,
    unit: str,
    *,
    alternatives: bool,
    raw_text: Sequence[str],
    breaks: str = "0",
    faults: dict[str, str] | None = None,
) -> Row:
    """The parts of a row whose columns are all text.

    Args:
        cells: SQL for each column, by what it is.
        raw: the format.
        rows: which rows count.
        unit: of times.
        alternatives: whether a time that is no number may be a date.
        raw_text: SQL for the text of a rejected row.
        breaks: SQL for the number of line breaks in a row.
        faults: conditions by reason, tested first.
    """
    user, item = cells["user"], cells["item"]
    missing = f"{missing_text(user, rows.null_values)} OR {missing_text(item, rows.null_values)}"
    certain = [certain_text(column, rows.null_values) for column in (user, item)]
    faults = dict(faults or {})
    if raw.whole_ids:
        # A cast alone would round 1.5 and take 007 and 7 for the same id.
        certain = [f"raw_user::VARCHAR = {user}", f"raw_item::VARCHAR = {item}"]
        faults["non-numeric id"] = f"NOT coalesce({' AND '.join(certain)}, FALSE) AND NOT ({missing})"
        user, item = (f"TRY_CAST({column} AS BIGINT)" for column in (user, item))
    if breaks != "0":
        broken = [f"contains({cells[key]}, chr(10))" for key in ("user", "item")]
        certain += [f"NOT {condition}" for condition in broken]
        faults["line break in an id"] = " OR ".join(broken)
    time = cells["time"] if rows.time_unit else raw.time_text.format(cells["time"])
    seconds, nanos = instant(time, "VARCHAR", unit, alternatives) or ("", "")
    return Row(
        user=user,
        item=item,
        seconds=seconds,
        nanos=nanos,
        raw=raw_text,
        missing=missing,
        certain_ids=" AND ".join(certain) if set(faults) <= {"non-numeric id", "line break in an id"} else "FALSE",
        faults=faults,
        later_faults=later_faults(cells, raw, rows),
        breaks=breaks,
        title=cells.get("title", ""),
    )


def later_faults(cells: dict[str, str], raw: RawFormat, rows: RowOptions) -> dict[str, str]:
    """Conditions for rows that are outside of what counts, or have no valid rating or behaviour, by reason.

    Args:
        cells: SQL for each column, by what it is.
        raw: the format.
        rows: which rows count.
    """
    conditions = {}
    if raw.window is not None:
        conditions["outside the public window"] = f"seconds NOT BETWEEN {raw.window[0]} AND {raw.window[1]}"
    if rows.behaviours is not None:
        texts = dict(raw.behaviours)
        behaviour = f"({cells['behaviour']})::VARCHAR"
        if texts:
            conditions["unknown behaviour"] = f"NOT {one_of(behaviour, list(texts.values()))}"
        wanted = [texts.get(name, name) for name in rows.behaviours]
        conditions[f"{LEFT_OUT}other behaviours"] = f"NOT {one_of(behaviour, wanted)}"
    if rows.min_rating is not None:
        rating = f"TRY_CAST({cells['rating']} AS DOUBLE)"
        conditions["non-numeric rating"] = f"coalesce(isnan({rating}), TRUE)"
        conditions[f"{LEFT_OUT}ratings below min_rating"] = f"{rating} < {rows.min_rating!r}"
    first, end = rows.period
    if first is not None:
        conditions[f"{LEFT_OUT}{BEFORE}"] = f"seconds < {first}"
    if end is not None:
        conditions[f"{LEFT_OUT}{AFTER}"] = f"seconds >= {end}"
    if rows.late_before is not None:
        conditions[LATE] = f"seconds < {rows.late_before}"
    return conditions


def _lacking(raw: RawFormat, rows: RowOptions) -> str:
    """The key that needs a column which the format does not have; empty for none."""
    if rows.min_rating is not None and raw.rating is None:
        return "min_rating"
    return "behaviours" if rows.behaviours is not None and raw.behaviour is None else ""


def _refuse_lacking(formats: Sequence[RawFormat], rows: RowOptions, name: str) -> list[RawFormat]:
    raise ValueError(f"{_lacking(formats[0], rows)}: {name} has no column for it")


def _json_query(text: PlainText, file: InputFile, layout: TextLayout, rows: RowOptions) -> SourceQuery:
    raw = layout.raw
    keys = {key: f"v[{place}]" for place, key in enumerate(raw.columns, 1)}
    paths = ", ".join(quoted("$." + json.dumps(name)) for name in raw.columns.values())
    values = f"CASE WHEN json_valid(c0) THEN json_extract_string(c0, [{paths}]) END AS v"
    lines = csv_relation(text, TextFormat(_UNUSED, width=1))
    row = text_row(keys, raw, rows, layout.unit, alternatives=False, raw_text=["c0"], faults={"bad JSON": "v IS NULL"})
    read_as = ", ".join(["lines of JSON", *filter(None, [raw.name]), layout.encoding, f"times in {layout.unit}"])
    relation = f"(SELECT c0, {values} FROM {lines} WHERE c0 IS NOT NULL)"
    return SourceQuery(checked(relation, row), file.name, read_as, text=text)


def _format_of_objects(lines: Sequence[str], formats: Sequence[RawFormat], name: str) -> RawFormat:
    """The format with which most lines have all keys in common."""
    found: Counter[int] = Counter()
    for line in lines:
        try:
            value = json.loads(line, strict=False)
        except ValueError:
            continue
        keys = set(value) if isinstance(value, dict) else set()
        found.update(place for place, raw in enumerate(formats) if keys >= {raw.user, raw.item, raw.time})
    if not found:
        expected = "; or ".join(raw.expected for raw in formats)
        raise ValueError(
            f"input: {name} has another format than expected ({expected}); it begins with {lines[0][:100]!r}"
        )
    return formats[found.most_common(1)[0][0]]
