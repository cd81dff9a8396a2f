"""How columns are written in a text file: stated, or guessed from what holds over many lines."""

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from dist_imsr.checks import require
from dist_imsr.data.raw_formats import RawFormat
from dist_imsr.data.times import is_likely, is_time

BLANKS = "blanks"
_DELIMITERS = (",", "\t", ";", "|", "::", "\x01")
_NAMES = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar", "::": "'::'", "\x01": r"'\x01'", BLANKS: BLANKS}
_WORDS = {name: delimiter for delimiter, name in _NAMES.items()} | {r"\t": "\t", r"\x01": "\x01"}
_NONE = "none"
_ENOUGH = 0.5  # the share of lines that must have the same columns
_LONGEST_VALUE = 100  # lines
_NO_VALUES = {"na", "n/a", "nan", "nat", "null", "none", "\\n"}
_UNQUOTED = 0.1  # how much better a reading without quotes must fit


@dataclass(frozen=True)
class TextFormat:
    """How the columns of a text file are written.

    Args:
        delimiter: between columns, or `BLANKS` for runs of blanks.
        quote: around a value that contains the delimiter; empty for none.
        escape: before a quote inside such a value.
        header: whether the first line holds names.
        width: the number of columns.
        places: of the columns that are read, by their names in `RawFormat`.
    """

    delimiter: str
    quote: str = ""
    escape: str = ""
    header: bool = False
    width: int = 0
    places: dict[str, int] | None = None

    def __str__(self) -> str:
        quotes = [f"quotes {self.quote}"] * bool(self.quote) + [f"escapes {self.escape}"] * (self.escape != self.quote)
        name = _NAMES.get(self.delimiter, repr(self.delimiter))
        return ", ".join([name, *quotes, "header" if self.header else "no header"])

    def without_quotes(self) -> "TextFormat":
        """The same format for a text in which there are none."""
        return replace(self, quote="", escape="")

    def rows(self, lines: Sequence[str]) -> list[list[str]]:
        """Splits lines into columns; a line with broken quotes has none, and a value may go on over lines."""
        found, place = list[list[str]](), 0
        while place < len(lines):
            columns, used = self.split(lines[place]), 1
            if columns is None:
                text = lines[place]
                for more, line in enumerate(lines[place + 1 : place + _LONGEST_VALUE], 2):
                    text += f"\n{line}"
                    if self.quote in line and (columns := self.split(text)) is not None:
                        used = more
                        break
            found.append(columns or [])
            place += used
        return found

    def split(self, text: str) -> list[str] | None:
        """The columns of one row; None if a quote at the beginning of a column is not closed at its end."""
        if self.delimiter == BLANKS:
            return text.split()
        if not self.quote or self.quote not in text:
            return text.split(self.delimiter)
        mark, escape = re.escape(self.quote), re.escape(self.escape)
        inside = f"(?:[^{mark}{escape}]|{escape}.)*" if self.escape != self.quote else f"(?:[^{mark}]|{mark}{mark})*"
        quoted = re.compile(f"{mark}({inside}){mark}", re.DOTALL)
        columns, place = list[str](), 0
        while True:
            if text.startswith(self.quote, place):
                match = quoted.match(text, place)
                if match is None:
                    return None
                end = match.end()
                columns.append(re.sub(f"{escape}(.)", r"\1", match[1], flags=re.DOTALL))
            else:
                end = text.find(self.delimiter, place) % (len(text) + 1)
                columns.append(text[place:end])
            if end == len(text):
                return columns
            if not text.startswith(self.delimiter, end):
                return None
            place = end + len(self.delimiter)


@dataclass(kw_only=True)
class TextOptions:
    """Text files: what is not stated is guessed from the first lines, and reported.

    Args:
        delimiter: between columns: comma, tab, semicolon, bar, blanks (a run of blanks or tabs), or up to four
            characters such as '::'.
        quote: around values that contain the delimiter; none for none.
        escape: before a quote inside such a value: a second quote, or a backslash as Spark writes.
        header: whether the first line holds names.
        encoding: such as utf-8, utf-16, latin-1 or gb18030; utf-8 unless a byte order mark says otherwise.
    """

    own_heading: ClassVar[bool] = True

    delimiter: str | None = None
    quote: str | None = None
    escape: str | None = None
    header: bool | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None:
            self.delimiter = _WORDS.get(self.delimiter, self.delimiter)
            short = self.delimiter == BLANKS or 1 <= len(self.delimiter.encode()) <= 4
            require(short and not set(self.delimiter) & set('"\r\n'), "delimiter", self.delimiter, "1 to 4 characters")
        self.quote = "" if self.quote == _NONE else self.quote
        for key, value in (("quote", self.quote), ("escape", self.escape)):
            fits = not value or (len(value) == 1 and value.isascii() and value.isprintable() and not value.isalnum())
            require(
                fits and (not value or value != self.delimiter),
                key,
                value,
                "one character that is no letter or digit, or none",
            )
        require(not (self.escape and self.quote == ""), "escape", self.escape, "none without a quote")
        if self.delimiter == BLANKS:
            require(not self.quote, "quote", self.quote, "none with --delimiter blanks")
        try:
            "".encode(self.encoding or "utf-8")
        except LookupError:
            require(False, "encoding", self.encoding, "the name of an encoding, such as utf-8, utf-16 or gb18030")


class _Guess(NamedTuple):
    """A way to read the first lines, and how well it fits; the larger, the better."""

    likely: bool  # most times are between 1990 and 2100
    fit: float  # share of lines that are whole rows with a time
    text: TextFormat
    raw: RawFormat


def guess_format(
    lines: Sequence[str], options: TextOptions, formats: Sequence[RawFormat], time_unit: str | None, name: str
) -> tuple[TextFormat, RawFormat]:
    """Finds the way to read lines that fits most of them.

    Args:
        lines: the first ones of a file.
        options: what is stated.
        formats: of the source.
        time_unit: if it is stated.
        name: of the file, for errors.

    Returns:
        How the columns are written, and which format of the source it is.

    Raises:
        ValueError: naming the file, if no way fits, or several do.
    """
    guesses = [
        guess
        for text in _candidates(options, lines)
        for raw in formats
        if (guess := _guess(text, raw, lines, options.header, time_unit or raw.time_unit)) is not None
    ]
    # Runs of blanks are in many files whose columns are separated by something else.
    guesses = [guess for guess in guesses if guess.text.delimiter != BLANKS] or guesses
    if not guesses:
        raise ValueError(_misfit(lines, options, formats, name))
    best = max(guesses, key=_quality)  # the first of the best
    # Where no time is likely, nothing shows whether the columns are the right ones.
    rivals = [guess for guess in guesses if not best.likely or _quality(guess) == _quality(best)]
    delimiters = list(dict.fromkeys(str(_NAMES.get(rival.text.delimiter)) for rival in rivals))
    if len(delimiters) > 1:
        raise ValueError(f"delimiter: {name} can be split at {' or '.join(delimiters)}: state --delimiter")
    return best.text, best.raw


def _quality(guess: _Guess) -> tuple[bool, float]:
    return guess.likely, round(guess.fit - _UNQUOTED * (not guess.text.quote), 2)


def _is_quoted(lines: Sequence[str], delimiter: str) -> bool:
    """Whether most lines with quotes have a value between two of them."""
    having = [line for line in lines if '"' in line]
    between = [line for line in having if any(cell[:1] == cell[-1:] == '"' for cell in line.split(delimiter))]
    return bool(having) and 2 * len(between) > len(having)


def _candidates(options: TextOptions, lines: Sequence[str]) -> list[TextFormat]:
    delimiters = (*_DELIMITERS, BLANKS) if options.delimiter is None else (options.delimiter,)
    quotes: tuple[str, ...] = ('"', "") if options.quote is None else (options.quote,)
    if options.escape:
        quotes = tuple(quote or '"' for quote in quotes if quote or options.quote is None)[:1]
    found = []
    for delimiter, quote in itertools.product(delimiters, quotes):
        if delimiter == BLANKS or (not quote and options.quote is None and _is_quoted(lines, delimiter)):
            quote = "" if delimiter == BLANKS else '"'
        escapes = (
            (options.escape,) if options.escape else (quote, "\\") if quote and options.escape is None else (quote,)
        )
        found += [TextFormat(delimiter, quote, escape) for escape in escapes]
    return list(dict.fromkeys(found))


def _guess(
    text: TextFormat, raw: RawFormat, lines: Sequence[str], header: bool | None, time_unit: str | None
) -> _Guess | None:
    rows = text.rows(lines)
    if not rows:
        return None
    width = Counter(map(len, rows)).most_common(1)[0][0]
    first = [cell.strip() for cell in rows[0]]
    found = raw.places_in(first) if header is not False and not raw.positional else None
    named = found is not None
    if named:
        width = len(first)
    places = found if named else raw.places_of(width)
    even = [row for row in rows if len(row) == width]
    if places is None or len(even) < _ENOUGH * len(rows) or width < len(set(places.values())):
        return None
    body = even if header is False or not even or rows[0] is not even[0] else even[1:]
    time = places.get("time")
    if not named and body is not even and header is None:
        # A first line of other names than those that are read.
        named = time is not None and _is_name(rows[0][time]) and any(is_time(row[time]) for row in body)
        if named and not raw.positional:  # a known format in an unknown order
            return None
        body = body if named else even
    named = header if header is not None else named
    if raw.ids and not raw.fits(*([row[places[key]] for row in body] for key in ("user", "item"))):
        return None
    times = [is_time(row[time]) for row in body] if time is not None else [True] * len(body)
    likely = time is not None and 2 * sum(is_likely(raw.completed_time(row[time]), time_unit) for row in body) > len(
        body
    )
    complete = replace(text, header=bool(named), width=width, places=places)
    return _Guess(likely, (sum(times) + bool(named)) / len(lines), complete, raw)


def _is_name(cell: str) -> bool:
    """Whether a cell of the time's column may be the name of the column, and is no bad time."""
    return bool(re.search("[^\\W\\d]", cell)) and not is_time(cell) and cell.strip().lower() not in _NO_VALUES


def _misfit(lines: Sequence[str], options: TextOptions, formats: Sequence[RawFormat], name: str) -> str:
    """Why no guess was possible: a column that is missing, or another format."""
    first = lines[0] if lines else ""
    candidates = _candidates(options, lines)
    texts = [text for text in candidates if text.delimiter != BLANKS] or candidates
    names = max((text.rows([first])[0] for text in texts if text.rows([first])), key=len, default=[first])
    [raw, *others] = formats
    if raw.configured:
        if raw.positional:
            names = [str(place) for place in range(len(names))]
        names = [one.strip().removeprefix("\ufeff") for one in names]
        for key, column in raw.columns.items():
            if column not in names:
                return f"columns.{key}: {name} has no column {column!r}; its columns are {', '.join(names)}"
            if names.count(column) > 1:
                return f"columns.{key}: {name} has the column {column!r} twice"
        return f"input: {name}: its lines do not have the same columns: state --delimiter and --quote"
    expected = "; or ".join(one.expected for one in (raw, *others))
    return f"input: {name} has another format than expected ({expected}); it begins with {first[:100]!r}"
