"""The lines and fields of a raw log, by Python's own codecs and a parser of quotes that guesses nothing."""

import bz2
import gzip
import io
import lzma
import re
import zipfile
from dataclasses import dataclass

import pyarrow as pa

BLANKS = "blanks"  # the delimiter of runs of blanks
NO_QUOTE, DOUBLED, BACKSLASH = "", '"', "\\"  # a quote's escape
UNDECODED = "the first line cannot be decoded"

_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


@dataclass(frozen=True)
class Record:
    """The fields of a line; None if it is broken."""

    number: int
    fields: list[str] | None
    doubts: frozenset[str] = frozenset()


def unpack(data: bytes) -> bytes | None:
    """The content of a compressed file, recognized by its first bytes; None if it is damaged."""
    try:
        if data.startswith(b"\x1f\x8b"):
            return gzip.decompress(data)
        if data.startswith(b"BZh"):
            return bz2.decompress(data)
        if data.startswith(b"\xfd7zXZ\x00"):
            return lzma.decompress(data)
        if data.startswith(b"\x28\xb5\x2f\xfd"):
            content = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
            # The stream ends silently where its file is cut; the whole at once does not.
            return pa.Codec("zstd").decompress(data, len(content), asbytes=True)
        if data.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                [name] = file.namelist()
                return file.read(name)
    except Exception:  # every library has its own errors, and some of them are bare
        return None
    return data


def physical_lines(content: bytes, encoding: str | None) -> list[Record] | None:
    """Each line as one field; None if the whole content cannot be decoded."""
    for mark, implied in _MARKS.items():
        if encoding in (None, implied) and content.startswith(mark):
            content, encoding = content[len(mark) :], implied
    encoding = encoding or "utf-8"
    if encoding.startswith("utf-16"):
        broken = len(content) % 2  # half a character: it can only belong to the last line
        texts: list[str | None] = [*content[: len(content) - broken].decode(encoding, "surrogatepass").split("\n")]
        texts = [None if text is None or re.search("[\ud800-\udfff]", text) else text for text in texts]
        texts[-1] = None if broken else texts[-1]
        returns = [text.removesuffix("\r").count("\r") if text else 0 for text in texts]
    else:
        texts = [_decoded(line, encoding) for line in content.split(b"\n")]
        returns = [line.removesuffix(b"\r").count(b"\r") for line in content.split(b"\n")]
    undecoded = texts[0] is None
    if undecoded:  # as a header, it may still hold the names that are needed
        texts[0] = content.decode(encoding, "replace").split("\n")[0]
    lines = []
    for number, text in enumerate(texts, 1):
        last = number == len(texts)
        if last and text == "":
            break
        doubts = frozenset({"a CR ends the file"} if last and text and text.endswith("\r") else ())
        doubts |= {UNDECODED} if number == 1 and undecoded else set()
        text = text.removesuffix("\r") if text is not None else None
        whole = text is not None and "\r" not in text
        # A line with carriage returns inside counts once for each, as each may have been the end of a row.
        for _ in range(max(1, returns[number - 1])):
            lines.append(Record(number, [text] if whole else None, doubts))  # type: ignore[list-item]
    return lines


def _decoded(line: bytes, encoding: str) -> str | None:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError:
        return None


def split(text: str, delimiter: str, escape: str) -> tuple[list[str] | None, frozenset[str]]:
    """The fields of one line and the doubts about them; None if its quotes are broken."""
    if delimiter == BLANKS:
        bare = text.strip(" \t")
        doubts = {"blanks around a line"} if bare != text else set()
        if "\t" in bare:
            doubts.add("tabs among blanks")
        return re.split("[ \t]+", bare), frozenset(doubts)
    if escape == NO_QUOTE:
        return text.split(delimiter), frozenset()
    fields, place, doubts = [], 0, set()
    while True:
        if text.startswith('"', place):
            match = re.compile(r'"((?:[^"]|"")*)"' if escape == DOUBLED else r'"((?:[^"\\]|\\.)*)"', re.S).match(
                text, place
            )
            if not match:
                return None, frozenset()
            place = match.end()
            fields.append(re.sub(r'"(")' if escape == DOUBLED else r'\\(["\\])', r"\1", match[1]))
            if text.startswith(" ", place):
                place += len(text) - place - len(text[place:].lstrip(" "))
                doubts.add("blanks after a quote")
            if place < len(text) and not text.startswith(delimiter, place):
                return None, frozenset()
        else:
            end = text.find(delimiter, place)
            value = text[place : end if end >= 0 else len(text)]
            place += len(value)
            fields.append(value)
            if '"' in value:
                doubts.add("a lone quote")
        if place >= len(text):
            return fields, frozenset(doubts)
        place += len(delimiter)
