"""Rows have 64 bits for their places: nothing ends at 2^32."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from dist_imsr.data.duckdb_engine import DuckDBEngine
from dist_imsr.data.numbering import Numbering
from dist_imsr.data.times import LATEST_TIME
from dist_imsr.data.workspace import Database, ProgressDisplay


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[DuckDBEngine]:
    with ProgressDisplay(Console(quiet=True)) as display, Database(tmp_path, 2**28, 1) as database:
        yield DuckDBEngine(database, display, 2**28, 1)


def test_moments_order_by_time_and_then_by_place(engine: DuckDBEngine) -> None:
    places = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**40, 2**62]
    rows = [(time, nanos, place) for time in (0, 1, LATEST_TIME) for nanos in (0, 999_999_999) for place in places]
    shuffled = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))]
    time, nanos, place = zip(*shuffled, strict=True)
    engine.register("rows", pa.table({"time": time, "nanos": pa.array(nanos, pa.int32()), "place": place}))
    assert engine.run("SELECT * FROM rows ORDER BY moment(time, nanos, place)") == rows
    later = engine.run("SELECT * FROM rows ORDER BY entering(-time, time, nanos, place)")
    assert later == sorted(rows, key=lambda row: (-row[0], row))


@pytest.mark.parametrize("waits", [False, True])
def test_numbers_of_rows_beyond_32_bits(engine: DuckDBEngine, waits: bool) -> None:
    places = [2**32 + 3, 3, 2**33, 2**33 + 2**32]
    users, items = [["d", "b", "c", "a"] * 2, [*"wxyz", *"wxyz"]]
    engine.register(
        "rows", pa.table({"user": users, "item": items, "place": [*places, *(at + 2**34 for at in places)]})
    )
    columns = "user, item, 5::BIGINT AS time, 0 AS nanos, NULL::VARCHAR AS reason, place AS rowid"
    engine.run(f"CREATE VIEW events AS SELECT {columns} FROM rows")
    numbering = Numbering(engine, 1, 2, waits, None)
    numbering.number_users(lambda done: None)
    numbering.number_items(lambda done: None)
    assert engine.run("SELECT raw FROM users ORDER BY local") == [("b",), ("d",), ("c",), ("a",)]
    assert engine.run("SELECT raw FROM items ORDER BY id") == [("x",), ("w",), ("y",), ("z",)]
