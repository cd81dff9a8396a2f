"""Any encoding and any line ends become UTF-8, line by line; damaged lines are set aside with their numbers."""

from pathlib import Path

import numpy as np
import pytest

from dist_imsr.data.broken_quotes import BROKEN_QUOTES, set_aside_broken_quotes
from dist_imsr.data.input_files import open_input
from dist_imsr.data.plain_text import (
    CARRIAGE_RETURN,
    PlainText,
    count_lines,
    encoding_of,
    head_lines,
    lines_at,
    lines_of_records,
    plain_text,
)
from dist_imsr.data.text_format import TextFormat


def converted(folder: Path, content: bytes, encoding: str | None = None, blanks: bool = False) -> PlainText:
    (folder / "log").write_bytes(content)
    file = open_input(folder / "log", folder)
    return plain_text(file, encoding_of(file, encoding), blanks, '"', folder, lambda _: None)


@pytest.mark.parametrize("content", [b"a,b\nc,d\n", b"a,b\nc,d", b"a,b\r\nc,d\r\n", b"\xef\xbb\xbfa,b\nc,d\n"])
def test_what_is_plain_is_not_copied(tmp_path: Path, content: bytes) -> None:
    assert converted(tmp_path, content) == PlainText(tmp_path / "log")


def test_mixed_line_ends(tmp_path: Path) -> None:
    text = converted(tmp_path, b"a\r\nb\nc\rd\ne\r\r\nf\r\ng\r")
    assert text.path.read_bytes() == b"a\nb\n\n\nf\ng"
    assert text.rejected == {CARRIAGE_RETURN: 2}
    assert text.examples == [(3, CARRIAGE_RETURN, "c\rd"), (4, CARRIAGE_RETURN, "e")]


def test_line_ends_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"ab\r\ncd\nef\rgh\n\r\nij"
    whole = converted(tmp_path, content)
    expected = whole.path.read_bytes(), whole.examples
    for size in range(1, 9):
        monkeypatch.setattr("dist_imsr.data.plain_text._BLOCK", size)
        text = converted(tmp_path, content)
        assert (text.path.read_bytes(), text.examples) == expected
        assert count_lines(text.path) == (5, 2)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1", "gb18030", "utf-8-sig"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "é,x\n" if encoding == "latin-1" else "é,商品\n"
    stated = None if encoding in ("utf-16", "utf-8-sig") else encoding
    found = converted(tmp_path, text.encode(encoding), stated).path.read_bytes()
    assert found.decode("utf-8-sig") == text


def test_bytes_that_are_no_text_stay_none(tmp_path: Path) -> None:
    first, second = converted(tmp_path, b"a\n\x81\x20\n", "gb18030").path.read_bytes().splitlines()
    assert first == b"a"
    with pytest.raises(UnicodeDecodeError):
        second.decode()


def test_carriage_returns_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"a,b\rc,d\r")
    with pytest.raises(ValueError, match="log ends its lines in a carriage return alone"):
        head_lines(open_input(tmp_path / "log", tmp_path), "utf-8")


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes("a,b\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match="log is no text in utf-8: state its --encoding"):
        encoding_of(open_input(tmp_path / "log", tmp_path), None)


def test_runs_of_blanks_become_tabs(tmp_path: Path) -> None:
    assert converted(tmp_path, b" a   b\tc \n  \nd e  f", blanks=True).path.read_bytes() == b"a\tb\tc\n\nd\te\tf"


def test_numbers_of_lines(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\na\nb\n\nc\nd\n")
    assert lines_of_records(tmp_path / "log", np.array([0, 1, 2]), np.array([3])).tolist() == [2, 5, 6]
    assert lines_at(tmp_path / "log", np.array([0, 1, 2, 3, 9])).tolist() == [1, 2, 2, 3, 6]


def test_an_open_quote_costs_its_own_line(tmp_path: Path) -> None:
    content = b'"a",1\n"b,2\n"c\nd",3\n"e",4\nf"g,5\n'
    text = converted(tmp_path, content)
    mended = set_aside_broken_quotes(text, TextFormat(",", '"', '"', width=2), tmp_path, lambda _: None)
    assert mended.path.read_bytes() == content.replace(b'"b,2', b"")
    assert mended.rejected == {BROKEN_QUOTES: 1}
    assert mended.examples == [(2, BROKEN_QUOTES, '"b,2')]
