"""Titles of items, as --columns.title keeps them."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.prepare import PrepareConfig, prepare
from dist_imsr.data.sources import ColumnsConfig

ROWS = [
    ("ann", "i1", 10, ""),
    ("ann", "i2", 20, 'A "second", with a comma'),
    ("ann", "i1", 30, "First"),
    ("bob", "i1", 40, "renamed later"),
    ("bob", "i3", 50, None),
    ("bob", "i2", 60, "x"),
]
LATER = [
    ("ann", "i4", 110, "Fourth"),
    ("ann", "i1", 120, "Again"),
    ("bob", "i3", 130, "too late"),
    ("bob", "i5", 140, "Ü"),
]
COLUMNS = ColumnsConfig(user="who", item="what", time="at", title="name")


def write(path, rows, kind):
    names = ("who", "what", "at", "name")
    table = pa.table({name: [row[place] for row in rows] for place, name in enumerate(names)})
    if kind == "parquet":
        pq.write_table(table, path)
        return
    quoted = [",".join('"' + str("" if one is None else one).replace('"', '""') + '"' for one in row) for row in rows]
    path.write_text("\n".join([",".join(names), *quoted]) + "\n")


def prepared(**options):
    return prepare(PrepareConfig(threads=1, **options), Console(quiet=True))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_first_title_of_each_item_is_kept(kind, tmp_path):
    day = {"span_every": "1d", "pretrain_until": "1970-01-02", "min_interactions": 1}
    for name, rows in (("log", ROWS), ("later", LATER)):
        write(tmp_path / f"{name}.{kind}", [(user, item, 2000 * time, title) for user, item, time, title in rows], kind)
    data = tmp_path / "data"
    prepared(source=kind, columns=COLUMNS, input=tmp_path / f"log.{kind}", output=data, **day)
    prepared(append=data, input=tmp_path / f"later.{kind}")
    dataset = Dataset(DataConfig(data, verify=True))
    raw = dataset.raw_ids("items", np.arange(5)).to_pylist()
    titles = dict(zip(raw, dataset.titles(np.arange(5)), strict=True))
    assert titles == {"i1": "First", "i2": 'A "second", with a comma', "i3": "i3", "i4": "Fourth", "i5": "Ü"}


def test_a_log_without_the_column_is_refused(tmp_path):
    write(tmp_path / "log.csv", ROWS, "csv")
    columns = replace(COLUMNS, title="heading")
    with pytest.raises(ValueError, match=r"columns.title: .*log.csv has no column 'heading'"):
        prepared(source="csv", columns=columns, input=tmp_path / "log.csv", output=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_data_without_titles_have_raw_ids_in_their_place(tmp_path):
    write(tmp_path / "log.csv", ROWS, "csv")
    columns = replace(COLUMNS, title=None)
    prepared(source="csv", columns=columns, input=tmp_path / "log.csv", output=tmp_path / "data", min_interactions=1)
    assert Dataset(DataConfig(tmp_path / "data")).titles(np.arange(3)) == ["i1", "i2", "i3"]
