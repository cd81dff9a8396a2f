"""Small logs that once were read wrongly, refused without need, or ended in a traceback; and their relatives."""

import bz2
import gzip
import io
import lzma
import random
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.mutations import run_command
from tests.data.slow_preparation import names_of, read

START = 1_600_000_000
POSITIONS = ("--columns.user", 0, "--columns.item", 1, "--columns.time", 2)
Contents = dict[Any, list[tuple[Any, int]]]  # user -> item and time, in order

# 24 rows of three users.
ROWS = [(f"u{row % 3}", f"i{row * 5 % 8}", START + 3600 * (row // 3) + row % 3) for row in range(24)]
LINES = ["user,item,time", *(f"{user},{item},{when}" for user, item, when in ROWS)]
TAOBAO = [f"{row % 3},{row * 5 % 8},7,pv,{1511539200 + 3600 * (row // 3) + row % 3}" for row in range(24)]


def contents_of(rows: Sequence[tuple[Any, Any, int]]) -> Contents:
    contents: Contents = defaultdict(list)
    for user, item, when in rows:
        contents[user].append((item, when))
    return dict(contents)


TAOBAO_ROWS = [(int(user), int(item), int(when)) for user, item, _, _, when in (line.split(",") for line in TAOBAO)]
EXPECTED, TAOBAO_EXPECTED = contents_of(ROWS), contents_of(TAOBAO_ROWS)


def prepare(path: Path, *options: object, source: str = "csv") -> tuple[int | str, str]:
    """The exit status of prepare.py and its standard error; the output is `out` next to the test's other files."""
    fixed = ("--min_interactions", 1, "--spans", 2, "--buckets", 1, "--threads", 1)
    arguments = ("--source", source, "--input", path, "--output", output_of(path), *fixed, *options)
    return run_command([str(argument) for argument in arguments])


def output_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.out")


def contents(path: Path, *options: object, source: str = "csv") -> Contents:
    """Prepares a log, which must succeed, and reads each user's sequence back."""
    status, errors = prepare(path, *options, source=source)
    assert status == 0, errors or status
    return read_back(output_of(path))


def read_back(output: Path) -> Contents:
    prepared = read(output)
    users, items = (names_of(prepared, table) for table in ("users", "items"))
    found: Contents = defaultdict(list)
    for _, sequences in sorted(prepared["sequences"].items()):
        for user, sequence in sequences.items():
            found[users[user]] += [(items[item], when) for item, when, _ in sequence]
    return dict(found)


def rejected(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(output_of(path) / "rejected" / "0000.parquet").to_pylist()


def refusal(path: Path, *options: object, source: str = "csv") -> str:
    """Prepares a log, which must be refused in one line that names the file; returns the line."""
    status, errors = prepare(path, *options, source=source)
    assert status == 2, errors or status
    ours = [line for line in errors.splitlines() if line.startswith("prepare.py: ")]
    assert ours == errors.splitlines()[-1:]
    assert str(path) in ours[0]
    assert not output_of(path).exists()
    return ours[0]


def write(path: Path, lines: Sequence[str], end: str = "\n") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def write_table(path: Path, times: Any, **options: Any) -> Path:
    users, items, seconds = zip(*ROWS, strict=True)
    path.parent.mkdir(exist_ok=True)
    pq.write_table(
        pa.table({"user": users, "item": items, "time": seconds if times is None else times}), path, **options
    )
    return path


# Line ends.


@pytest.mark.parametrize("ends", [("\n", "\r\n"), ("\r\n", "\n")], ids=["one CRLF", "one LF"])
@pytest.mark.parametrize("place", [0, 1, 12, 24])
def test_one_line_that_ends_otherwise(tmp_path: Path, place: int, ends: tuple[str, str]) -> None:
    text = "".join(line + ends[number == place] for number, line in enumerate(LINES))
    (tmp_path / "log").write_bytes(text.encode())
    assert contents(tmp_path / "log") == EXPECTED
    assert rejected(tmp_path / "log") == []


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_mixed_line_ends_in_taobao(tmp_path: Path, pack: Any) -> None:
    text = "".join(line + ("\r\n" if number % 6 == 5 else "\n") for number, line in enumerate(TAOBAO))
    (tmp_path / "log").write_bytes(pack(text.encode()))
    assert contents(tmp_path / "log", source="taobao") == TAOBAO_EXPECTED


def test_the_last_line_needs_no_end(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes("\r\n".join(LINES[:-1]).encode() + b"\n" + LINES[-1].encode())
    assert contents(tmp_path / "log") == EXPECTED


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "broken", ["u1,i9,1600000001\r", "u\r1,i9,1600000001", "u1,i9\r,1600000001", "\ru1,i9,1600000001"]
)
def test_a_lone_cr_is_the_fault_of_its_line(tmp_path: Path, broken: str, end: str) -> None:
    # "...\r" ends in CR CR LF or, among lines that end in LF, is a line that ends in CR LF.
    broken += "\r" if broken.endswith("\r") and end == "\n" else ""
    path = write(tmp_path / "log", [*LINES[:4], "", broken, *LINES[4:]], end)
    assert contents(path, "--max_bad_fraction", 0.1) == EXPECTED
    assert [row["line"] for row in rejected(path)] == [6]


def test_too_many_lone_crs_name_a_line(tmp_path: Path) -> None:
    assert "line 5" in refusal(write(tmp_path / "log", [*LINES[:4], LINES[4] + "\r\r", *LINES[5:]]))
    broken = [*TAOBAO[:7], TAOBAO[7].replace(",7,", ",\r7,"), *TAOBAO[8:]]
    path = write(tmp_path / "taobao", broken)
    assert "line 8" in refusal(path, source="taobao")
    assert contents(path, "--max_bad_fraction", 0.1, source="taobao") == contents_of(
        [row for number, row in enumerate(TAOBAO_ROWS) if number != 7]
    )


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("kind", ["names", "positions", "taobao"])
def test_lines_that_end_in_cr_alone_are_refused(tmp_path: Path, kind: str, pack: Any) -> None:
    lines = {"names": LINES, "positions": LINES[1:], "taobao": TAOBAO}[kind]
    (tmp_path / "log").write_bytes(pack("".join(line + "\r" for line in lines).encode()))
    source = "taobao" if kind == "taobao" else "csv"
    line = refusal(tmp_path / "log", *(POSITIONS if kind == "positions" else ()), source=source)
    assert "CR" in line or "carriage return" in line


# Compressed bytes under any name.


def zipped(data: bytes, names: Sequence[str] = ("log.csv",)) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, data)
    return file.getvalue()


PACKS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    "zip": zipped,
}


@pytest.mark.parametrize("name", ["log.csv", "log"])
@pytest.mark.parametrize("kind", PACKS)
def test_compression_is_known_by_content(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_bytes(PACKS[kind]("\n".join(LINES).encode()))
    assert contents(tmp_path / name) == EXPECTED


@pytest.mark.parametrize("kind", PACKS)
def test_cut_compressed_files_are_refused(tmp_path: Path, kind: str) -> None:
    draw = random.Random(0)
    lines = [LINES[0], *(f"u{draw.randrange(9)},i{draw.randrange(99)},{START + row * 60}" for row in range(5000))]
    whole = PACKS[kind]("\n".join(lines).encode())
    for length in (len(whole) - 1, len(whole) - 9, len(whole) // 2, 12):
        (tmp_path / "log").write_bytes(whole[:length])
        refusal(tmp_path / "log")


def test_a_wrong_checksum_and_two_members_are_refused(tmp_path: Path) -> None:
    data = bytearray(gzip.compress("\n".join(LINES).encode()))
    data[-6] ^= 1
    (tmp_path / "log").write_bytes(data)
    refusal(tmp_path / "log")
    (tmp_path / "log").write_bytes(zipped("\n".join(LINES).encode(), ("a.csv", "b.csv")))
    refusal(tmp_path / "log")


# Folders named KEY=VALUE.


@pytest.mark.parametrize("folder", ["time=2018", "user=9", "item=abc", "time=2020-09", "u=1"])
def test_a_folder_replaces_no_column(tmp_path: Path, folder: str) -> None:
    base = tmp_path / folder
    assert contents(write(base / "log.csv", LINES)) == EXPECTED
    path = write(base / "ratings.csv", [f"{user},{item},5.0,{when}" for user, item, when in ROWS])
    assert contents(path, *POSITIONS[:-1], 3) == EXPECTED
    assert contents(write(base / "UserBehavior.csv", TAOBAO), source="taobao") == TAOBAO_EXPECTED
    assert contents(write_table(base / "part-0.parquet", None), source="parquet") == EXPECTED


@pytest.mark.parametrize("source", ["csv", "parquet"])
@pytest.mark.parametrize("kept", [["item", "time"], ["user", "item", "time"]], ids=["absent", "present"])
def test_hive_takes_the_column_from_the_folder(tmp_path: Path, source: str, kept: list[str]) -> None:
    path = tmp_path / "user=007" / f"part-0.{source}"
    path.parent.mkdir()
    columns = dict(zip(("user", "item", "time"), zip(*ROWS, strict=True), strict=True))
    table = pa.table({name: columns[name] for name in kept})
    if source == "parquet":
        pq.write_table(table, path)
    else:
        write(path, [",".join(kept), *(",".join(map(str, row.values())) for row in table.to_pylist())])
    rows = sorted(ROWS, key=lambda row: row[2])
    found = contents(path, "--hive", "true", source=source)
    assert found == {"007": [(item, when) for _, item, when in rows]}


def test_a_folder_is_no_column_unless_stated(tmp_path: Path) -> None:
    path = write(tmp_path / "user=7" / "log.csv", [line.partition(",")[2] for line in LINES])
    assert "user" in refusal(path)


# Delimiters.

LISTS = {
    "bars in a list": (",", "11|5|16{}|7|8"),
    "semicolons in a list": (",", "a;b;c;{};e;f"),
    "tabs in a list": (",", "a\tb\t{}\td\te"),
    "commas between bars": ("|", "a,b,c,{},e,f"),
    "commas between semicolons": (";", "1,5,{},7,8"),
    "bars between tabs": ("\t", "a|b|{}|c|d|e"),
    "colons between commas": (",", "a::b::{}::d::e"),
}


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("header", [False, True])
def test_a_list_in_a_column(tmp_path: Path, kind: str, header: bool) -> None:
    delimiter, text = LISTS[kind]
    rows = [(str(row % 3), str(row * 7 % 9), START + 3600 * (row // 3) + row % 3) for row in range(24)]
    lines = [delimiter.join([user, item, str(when), text.format(row)]) for row, (user, item, when) in enumerate(rows)]
    head = [delimiter.join(("user", "item", "time", "list"))] * header
    path = write(tmp_path / "log", [*head, *lines])
    options = () if header else POSITIONS
    status, _ = prepare(path, *options)
    if status == 0:
        assert read_back(output_of(path)) == contents_of(rows)
    else:
        refusal(path, *options)
    stated = write(tmp_path / "stated", [*head, *lines])
    assert contents(stated, *options, "--delimiter", delimiter) == contents_of(rows)


def test_quoted_lists_of_the_delimiter(tmp_path: Path) -> None:
    lines = [f'{user},"{item},{item}",{when},"1,2,3"' for user, item, when in ROWS]
    expected = contents_of([(user, f"{item},{item}", when) for user, item, when in ROWS])
    assert contents(write(tmp_path / "log", lines), *POSITIONS) == expected
