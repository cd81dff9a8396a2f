"""Text in any encoding and with any line ends, as UTF-8 with one kind of line end, line by line the same."""

import codecs
import itertools
import mmap
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from dist_imsr.data.input_files import PARQUET, InputFile, name_file

CARRIAGE_RETURN = "carriage return inside the line"  # the reason of a rejected line
EXAMPLES = 1000  # rejected lines whose text is kept
HEAD_LINES = 1000  # from which formats are guessed

_BLOCK = 1 << 23  # bytes
_LONGEST_LINE = 1 << 26  # bytes; a file without line ends is noticed here
_HEAD = 1 << 20  # bytes
_KEPT = 1000  # characters of a rejected line
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_BLANKS = re.compile(rb"[ \t]+")
_AROUND = re.compile(rb"(?m)^[ \t]+|[ \t]+$")

# A byte that is no text in its encoding becomes one that is none in UTF-8, so that its line is rejected.
_INVALID = "dist_imsr-invalid"
codecs.register_error(_INVALID, lambda error: ("\udcff", error.end))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class PlainText:
    """A text file that DuckDB can read.

    Args:
        path: of the text; lines are those of the original, but rejected ones are emptied.
        rejected: the number of rejected lines by reason; a line counts once for each carriage return in it.
        examples: number, from 1, reason and text of the first rejected lines.
        quoted: whether it has a quote.
    """

    path: Path
    rejected: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[int, str, str]] = field(default_factory=list)
    quoted: bool = False


def encoding_of(file: InputFile, stated: str | None) -> str:
    """The encoding of a text file: as stated, by its byte order mark, else UTF-8.

    Raises:
        ValueError: naming the file, if it is no text.
    """
    with name_file(file.name), file.open() as source:
        head = source.read(_HEAD)
    if head.startswith(PARQUET):
        raise ValueError(f"input: {file.name} is a Parquet file: read it with --source parquet")
    if head[257:262] == b"ustar":
        raise ValueError(f"input: {file.name} is a tar archive: unpack it and name the logs")
    marked = next((encoding for mark, encoding in _MARKS.items() if head.startswith(mark)), None)
    if stated is not None:
        return "utf-8-sig" if marked == "utf-8" and codecs.lookup(stated).name == "utf-8" else stated
    if marked is None and head.count(0) > len(head) / 8:
        raise ValueError(f"input: {file.name} is no text in utf-8: state its --encoding, such as utf-16-le")
    return marked or "utf-8"


def head_lines(file: InputFile, encoding: str) -> list[str]:
    """The first lines of a file, without line ends; bytes that are no text become U+FFFD.

    Raises:
        ValueError: naming the file, if its lines end in carriage returns alone or not at all.
    """
    with name_file(file.name), file.open() as source:
        text = codecs.getincrementaldecoder(encoding)("replace").decode(source.read(_HEAD)).removeprefix("\ufeff")
        more = bool(source.read(1))
    lines = text.replace("\r\n", "\n").split("\n")
    if more and len(lines) > 1:
        lines.pop()  # it may be cut
    lines[-1] = lines[-1].removesuffix("\r")
    if "\n" not in text and "\r" in text.rstrip("\r"):
        raise ValueError(
            f"input: {file.name} ends its lines in a carriage return alone, as old Macs did: convert it, such as with "
            "tr '\\r' '\\n'"
        )
    return [line for line in lines[:HEAD_LINES] if line and "\r" not in line]


def plain_text(
    file: InputFile, encoding: str, blanks: bool, quote: str, scratch: Path, progress: Callable[[float], None]
) -> PlainText:
    """Makes a file readable for DuckDB, by a copy where that is needed.

    Args:
        file: the file.
        encoding: its encoding.
        blanks: whether runs of blanks separate columns: each becomes one tab.
        quote: around values; empty for none.
        scratch: a folder for the copy.
        progress: called with the fraction that is done.

    Raises:
        ValueError: naming the file, if it cannot be read or decoded.
    """
    with name_file(file.name):
        if file.compression is None and not blanks and codecs.lookup(encoding).name in ("utf-8", "utf-8-sig"):
            with file.path.open("rb") as source, mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                marked = whole[:3] == codecs.BOM_UTF8 and whole[3:4] in (b"\r", b"\n")  # a first line that is not blank
                if not marked and (whole.find(b"\r") < 0 or _all_crlf(whole)):
                    return PlainText(file.path, quoted=bool(quote) and whole.find(quote.encode()) >= 0)
        return _copy(file, encoding, blanks, quote, scratch / "text", progress)


def _all_crlf(whole: mmap.mmap) -> bool:
    """Whether every line ends in CR LF, and neither is anywhere else."""
    last = 0
    for begin in range(0, len(whole), _BLOCK):
        block = np.frombuffer(whole[begin : begin + _BLOCK], np.uint8)
        returns, feeds = block == 13, block == 10
        before = np.concatenate([[last == 13], returns[:-1]])
        if not np.array_equal(feeds, before):
            return False
        last = int(block[-1])
    return last != 13


def _copy(
    file: InputFile, encoding: str, blanks: bool, quote: str, path: Path, progress: Callable[[float], None]
) -> PlainText:
    strays, number, quoted = 0, 0, False
    examples: list[tuple[int, str, str]] = []
    with path.open("wb") as sink:
        for block in _whole_lines(_encoded(file, encoding, progress), file.name):
            block = block.replace(b"\r\n", b"\n")
            if b"\r" in block:
                lines = block.split(b"\n")
                for place, line in enumerate(lines):
                    if b"\r" in line:
                        strays += line.count(b"\r")
                        if len(examples) < EXAMPLES:
                            examples.append(example(number + place + 1, CARRIAGE_RETURN, line))
                        lines[place] = b""
                block = b"\n".join(lines)
            if blanks:
                block = _BLANKS.sub(b"\t", _AROUND.sub(b"", block))
            number += block.count(b"\n")
            quoted = quoted or (bool(quote) and quote.encode() in block)
            sink.write(block)
    return PlainText(path, {CARRIAGE_RETURN: strays} if strays else {}, examples, quoted)


def example(number: int, reason: str, line: bytes) -> tuple[int, str, str]:
    """A rejected line for `PlainText`, without its end."""
    return number, reason, line[:_KEPT].decode(errors="replace").rstrip("\r\n")


def _encoded(file: InputFile, encoding: str, progress: Callable[[float], None]) -> Iterator[bytes]:
    """The text in UTF-8, in blocks."""
    unchanged = codecs.lookup(encoding).name == "utf-8"
    decoder = codecs.getincrementaldecoder(encoding)(_INVALID)
    size, read = file.path.stat().st_size * (1 if file.compression is None else 4), 0  # a guess, for the progress
    with file.open() as source:
        if unchanged and (head := source.read(3)) != codecs.BOM_UTF8:
            yield head
        while block := source.read(_BLOCK):
            read += len(block)
            progress(min(read / size, 1.0))
            yield block if unchanged else decoder.decode(block).encode("utf-8", "surrogateescape")
    if not unchanged:
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")


def _whole_lines(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Joins blocks to such that end at the end of a line; the last one is without a line end if the file is."""
    rest = b""
    for block in blocks:
        head, feed, tail = block.rpartition(b"\n")
        if feed:
            yield rest + head + feed
            rest = tail
        else:
            rest += tail
            if len(rest) > _LONGEST_LINE:
                raise ValueError(f"input: {name} has a line of more than {_LONGEST_LINE >> 20} MiB: is it a log?")
    if rest:
        yield rest.removesuffix(b"\r")


def whole_lines(source: IO[bytes]) -> Iterator[bytes]:
    """The blocks of an open plain text, each of whole lines."""
    return _whole_lines(iter(lambda: source.read(_BLOCK), b""), source.name)


def count_lines(path: Path) -> tuple[int, int]:
    """The number of lines of a plain text, and how many of them are blank."""
    lines = blank = 0
    for lengths in _line_lengths(path):
        lines += len(lengths)
        blank += int((lengths == 0).sum())
    return lines, blank


def lines_of_records(path: Path, records: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """The line numbers of records, in a text where every line is a record, but blank lines and excluded ones.

    Args:
        path: of a plain text.
        records: ``[n]`` places among the records, ascending, from 0.
        excluded: ``[m]`` line numbers, from 1.

    Returns:
        ``[n]`` from 1.
    """
    found, seen, first = [np.empty(0, np.int64)], 0, 1
    for lengths in _line_lengths(path):
        if not len(records) or records[-1] < seen:
            break
        counts = lengths > 0
        here = excluded[(excluded >= first) & (excluded < first + len(lengths))]
        counts[here - first] = False
        lines = first + np.flatnonzero(counts)
        found.append(lines[records[(records >= seen) & (records < seen + len(lines))] - seen])
        seen, first = seen + len(lines), first + len(lengths)
    return np.concatenate(found)


def lines_at(path: Path, positions: np.ndarray) -> np.ndarray:
    """The line numbers at positions in a plain text.

    Args:
        path: of the text.
        positions: ``[n]`` of bytes, ascending, from 0.

    Returns:
        ``[n]`` from 1.
    """
    found, begin, line = [np.empty(0, np.int64)], 0, 1
    for lengths in _line_lengths(path, ends=True):
        starts = begin + np.concatenate([[0], lengths.cumsum()])
        here = positions[(positions >= begin) & (positions < starts[-1])]
        found.append(line + np.searchsorted(starts, here, side="right") - 1)
        begin, line = int(starts[-1]), line + len(lengths)
    return np.concatenate(found)


def leading_blank_lines(path: Path) -> int:
    """The number of blank lines at the beginning of a plain text."""
    with path.open("rb") as source:
        return sum(1 for _ in itertools.takewhile(lambda line: not line.strip(b"\r\n"), source))


def _line_lengths(path: Path, ends: bool = False) -> Iterator[np.ndarray]:
    """The numbers of bytes of lines, with or without their ends, in blocks."""
    with path.open("rb") as source:
        for block in whole_lines(source):
            codes = np.frombuffer(block, np.uint8)
            feeds = np.flatnonzero(codes == 10)
            if block[-1:] != b"\n":
                feeds = np.append(feeds, len(codes))
            lengths = np.diff(feeds, prepend=-1) - 1
            carriage = codes[feeds - 1] == 13
            yield lengths + 1 if ends else lengths - (carriage & (lengths > 0))
