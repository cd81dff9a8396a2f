"""Columns are found by what holds over many lines, and ambiguous files are refused."""

import pytest

from dist_imsr.data.raw_formats import RAW_FORMATS, RawFormat
from dist_imsr.data.text_format import TextFormat, TextOptions, guess_format

NAMED = RawFormat(user="user", item="item", time="time", configured=True)
FIRST_THREE = RawFormat(user="0", item="1", time="2", configured=True)


def guess(lines: list[str], raw: RawFormat | str = NAMED, **options: object) -> TextFormat:
    formats = RAW_FORMATS[raw] if isinstance(raw, str) else (raw,)
    return guess_format(lines, TextOptions(**options), formats, None, "log.csv")[0]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", "::", "\x01"])
def test_delimiters(delimiter: str) -> None:
    lines = [delimiter.join(row) for row in (("user", "item", "time"), ("a", "x", "1600000000"))]
    found = guess(lines)
    assert (found.delimiter, found.header, found.width) == (delimiter, True, 3)


def test_runs_of_blanks() -> None:
    found = guess(["a   x  1600000000", "b x   1600000001"], FIRST_THREE)
    assert str(found) == "blanks, no header"
    assert found.rows(["c  y \t 7"]) == [["c", "y", "7"]]


def test_lists_do_not_decide() -> None:
    lines = [f"{row},{row},{1600000000 + row},1|2|3|4|5" for row in range(5)]
    assert guess(lines, FIRST_THREE).delimiter == ","
    lines = [f"u{row}|i{row}|{1600000000 + row}|a,b,c" for row in range(5)]
    assert guess(lines, FIRST_THREE).delimiter == "|"


def test_an_ambiguous_delimiter_is_refused() -> None:
    lines = [f"{row},{row},{row}|{row}|{row}" for row in range(5)]
    with pytest.raises(ValueError, match=r"delimiter: log\.csv can be split at comma or bar: state --delimiter"):
        guess(lines, FIRST_THREE)
    assert guess(lines, FIRST_THREE, delimiter="bar").delimiter == "|"


def test_quotes_and_escapes() -> None:
    doubled = ["user,item,time", '"a","x ""y"", z",1600000000']
    assert str(guess(doubled)) == 'comma, quotes ", header'
    assert guess(doubled).rows(doubled)[1] == ["a", 'x "y", z', "1600000000"]
    escaped = ["user,item,time", r'"a","x \"y\", z",1600000000']
    assert str(guess(escaped)) == 'comma, quotes ", escapes \\, header'
    assert guess(escaped).rows(escaped)[1] == ["a", 'x "y", z', "1600000000"]
    assert guess(["user|item|time", "a'|'x'|1600000000"], quote="none").quote == ""


def test_a_value_over_lines() -> None:
    lines = ["user,item,time", 'a,"x', 'y",1600000000', 'b,"z,1600000000']
    assert guess(lines[:3]).rows(lines) == [["user", "item", "time"], ["a", "x\ny", "1600000000"], []]


@pytest.mark.parametrize(("first", "header"), [("who,what,when", True), ("a,x,1600000000", False)])
def test_headers_by_position(first: str, header: bool) -> None:
    assert guess([first, "b,y,1600000001"], FIRST_THREE).header is header


def test_orders_of_amazon() -> None:
    user, item = "A2EFCYXHNK06IS", "0000013714"
    for lines, place in (([f"{user},{item},5.0,1377993600"], 0), ([f"{item},{user},5.0,1377993600"], 1)):
        found = guess(lines * 3, "amazon")
        assert found.places is not None
        assert found.places["user"] == place
    with pytest.raises(ValueError, match=r"log\.csv has another format than expected"):
        guess([f"{user},{item},5.0,1377993600", f"{item},{user},5.0,1377993600"], "amazon")


def test_missing_columns_name_those_that_are_there() -> None:
    with pytest.raises(
        ValueError, match=r"columns.time: log\.csv has no column 'time'; its columns are user, item, ts"
    ):
        guess(["user,item,ts", "a,b,1"])
    with pytest.raises(ValueError, match=r"columns.user: log\.csv has the column 'user' twice"):
        guess(["user,user,item,time", "a,a,b,1"])


@pytest.mark.parametrize(
    ("key", "value"),
    [("delimiter", "12345"), ("delimiter", "\n"), ("quote", "ab"), ("escape", "x"), ("encoding", "klingon")],
)
def test_impossible_values(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key}: "):
        TextOptions(**{key: value})
