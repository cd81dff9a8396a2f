"""The pieces of a file are the file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_imsr.data.input_files import InputFile
from dist_imsr.data.pieces import (
    PLACE_BITS,
    Piece,
    Summary,
    _copy_lines,
    merged,
    parquet_pieces,
    read_piece,
    text_pieces,
)
from dist_imsr.data.sources import ColumnsConfig, SourceConfig
from dist_imsr.data.text_source import text_layout

START = 1_600_000_000
SCHEMA = pa.schema(
    {"user": pa.string(), "item": pa.string(), "time": pa.int64(), "nanos": pa.int32(), "reason": pa.string()}
    | {"title": pa.string(), "rowid": pa.int64(), "summary": pa.string(), "examples": pa.string()}
)


@pytest.mark.parametrize("text", [b"", b"\n", b"a", b"a\n", b"\n\na\r\nbb\n\nccc", b"a" * 50 + b"\nb\n" + b"c" * 7])
def test_lines_are_in_one_piece_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    (tmp_path / "log").write_bytes(text)
    file = InputFile("log", tmp_path / "log")
    for size in range(1, 12):
        monkeypatch.setattr("dist_imsr.data.pieces._PIECE", size)
        found, lines = b"", 0
        for piece in text_pieces(file, None, True):  # type: ignore[arg-type]
            copy, count = _copy_lines(piece, piece.part, tmp_path / "part")  # type: ignore[arg-type]
            part = copy.path.read_bytes()
            assert not found or found.endswith(b"\n") or not part
            found, lines = found + part, lines + count
        assert (found, lines) == (text, len(text.splitlines()))


def test_pieces_of_a_text_read_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"u{row % 7},i{row % 5},{START + row}" if row % 11 else f"u,{row}" for row in range(200)]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *rows]))
    config = SourceConfig(source="csv", input=tmp_path / "log.csv")
    file = InputFile("log.csv", tmp_path / "log.csv")
    layout = text_layout(file, config.formats, config, config)
    [whole] = text_pieces(file, layout, False)
    monkeypatch.setattr("dist_imsr.data.pieces._PIECE", 300)
    expected, found = (read(pieces, config) for pieces in ([whole], text_pieces(file, layout, True)))
    assert found[0] == expected[0]
    assert vars(found[1]) == vars(expected[1])
    assert [line for _, line, _, _ in found[1].examples] == [2 + row for row in range(0, 200, 11)]


def test_pieces_of_parquet_read_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = [START + row if row % 9 else None for row in range(500)]
    table = pa.table({"user": ["u"] * 500, "item": [f"i{row}" for row in range(500)], "time": times})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=60)
    config = SourceConfig(source="parquet", input=tmp_path / "log.parquet", columns=ColumnsConfig())
    file = InputFile("log.parquet", tmp_path / "log.parquet")
    [whole] = parquet_pieces(file, "s")
    monkeypatch.setattr("dist_imsr.data.pieces._PIECE", 1000)
    pieces = parquet_pieces(file, "s")
    assert len(pieces) > 3
    expected, found = read([replace(whole, part=None)], config), read(pieces, config)
    assert found[0] == expected[0]
    assert vars(found[1]) == vars(expected[1])


def read(pieces: list[Piece], config: SourceConfig) -> tuple[list[Any], Any]:
    """The rows of pieces in the order of their places, without these; and what is merged of the rest."""
    import json

    tables = [
        pa.Table.from_batches(read_piece(piece, number, config, 2**28, SCHEMA), SCHEMA)
        for number, piece in enumerate(pieces)
    ]
    rows = [row for table in tables for row in table.to_pylist()]
    last = [row for row in rows if row["summary"] is not None]
    assert [row["rowid"] >> PLACE_BITS for row in last] == [*range(len(pieces))]
    summaries = [Summary(**json.loads(row["summary"])) for row in last]
    examples = (json.loads(row["examples"]) for row, one in zip(last, summaries, strict=True) if one.rejected)
    kept = sorted((row for row in rows if row["summary"] is None), key=lambda row: row["rowid"])
    return [[*row.values()][:5] for row in kept], merged(pieces, summaries, examples)
