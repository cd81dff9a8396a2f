"""Sets aside lines with a quote that nothing closes, which would swallow the lines after them."""

import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from dist_imsr.data.plain_text import EXAMPLES, PlainText, example, whole_lines
from dist_imsr.data.text_format import TextFormat

BROKEN_QUOTES = "broken quotes"  # the reason of a rejected line
_LONGEST_VALUE = 1000  # lines
_ESCAPED = re.compile(rb"\\.", re.DOTALL)


def set_aside_broken_quotes(
    text: PlainText, form: TextFormat, scratch: Path, progress: Callable[[float], None]
) -> PlainText:
    """Empties each line that opens a quote, unless a line after it closes that quote and completes the row.

    Args:
        text: the text.
        form: how its columns are written.
        scratch: a folder for a copy.
        progress: called with the fraction that is done, if the text is copied.

    Returns:
        The text itself if no line is broken, else a copy.
    """
    quote = form.quote.encode()
    if not text.quoted or not _has_open_quotes(text.path, quote[0]):
        return text
    count, examples, number, written = 0, list(text.examples), 1, 0
    path, size = scratch / "quotes", text.path.stat().st_size
    with text.path.open("rb") as source, path.open("wb") as sink:
        ahead: deque[bytes] = deque()
        lines = iter(lambda: ahead.popleft() if ahead else source.readline(), b"")
        for line in lines:
            record = [line]
            if _is_open(line, quote, form) and form.split(_text(line)) is None:
                record = _closed(line, source.readline, ahead, quote, form)
                if not record:
                    count += 1
                    if len(examples) < EXAMPLES:
                        examples.append(example(number, BROKEN_QUOTES, line))
                    record = [b"\n"]
            sink.writelines(record)
            number += len(record)
            written += len(record[0])
            progress(min(written / size, 1.0))
    return (
        replace(text, path=path, rejected=text.rejected | {BROKEN_QUOTES: count}, examples=examples) if count else text
    )


def _closed(line: bytes, read: Callable[[], bytes], ahead: deque[bytes], quote: bytes, form: TextFormat) -> list[bytes]:
    """The lines of a row that begins in a line with an open quote; none if it does not end well."""
    record = [line]
    for place in itertools.count():
        if place == len(ahead):
            ahead.append(read())
        following = ahead[place]
        if not following or place == _LONGEST_VALUE:
            return []
        record.append(following)
        if _is_open(following, quote, form):
            columns = form.split(_text(b"".join(record)))
            if columns is not None and len(columns) == form.width:
                for _ in record[1:]:
                    ahead.popleft()
                return record
            return []
    raise AssertionError


def _is_open(line: bytes, quote: bytes, form: TextFormat) -> bool:
    """Whether a line has an odd number of quotes."""
    return bool((line if form.escape == form.quote else _ESCAPED.sub(b"", line)).count(quote) & 1)


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r\n")


def _has_open_quotes(path: Path, quote: int) -> bool:
    return any(bool((counts & 1).any()) for counts in _quotes_of_lines(path, quote))


def _quotes_of_lines(path: Path, quote: int) -> Iterator[np.ndarray]:
    """The number of quotes in each line, in blocks."""
    with path.open("rb") as source:
        for block in whole_lines(source):
            codes = np.frombuffer(block, np.uint8)
            starts = np.concatenate([[0], np.flatnonzero(codes[:-1] == 10) + 1])
            yield np.add.reduceat(codes == quote, starts, dtype=np.int32)
