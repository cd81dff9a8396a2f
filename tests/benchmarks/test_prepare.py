import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dist_imsr.benchmarks import polars_prepare
from dist_imsr.benchmarks.prepare import PrepareBench, generate_log
from dist_imsr.data.prepare import PrepareConfig, prepare
from launch.bench import main

TINY = ["--rows", "[10000, 20000]", "--polars_rows", "20000", "--repeats", "2", "--buckets", "4"]


def test_figures(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main(["prepare", *TINY, "--folder", str(tmp_path), "--json", str(path)]) == 0
    figures = {row["figure"]: row for row in json.loads(path.read_text())}
    assert set(figures) == {
        *(f"prepare_{name}_{rows}" for name in ("rows_per_second", "peak_bytes") for rows in (10_000, 20_000)),
        *(f"prepare_{name}_over_polars" for name in ("seconds", "peak_bytes")),
        *(f"prepare_{name}_20000_over_10000" for name in ("seconds_per_row", "peak_bytes")),
    }
    assert all(row["runs"] == 2 and row["min"] > 0 for row in figures.values())
    assert figures["prepare_rows_per_second_20000"]["settings"]["rows_read"] == pytest.approx(20_000, rel=0.1)
    assert "prepare_seconds_over_polars" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["figures.json"]


def test_the_baseline_does_the_same_steps(tmp_path):
    log = tmp_path / "log.csv"
    generate_log(PrepareBench(), 20_000, log)
    # What is no click, and what is outside the public window, is not counted.
    with log.open("a") as file:
        file.write("0,1,1,buy,1511550000\n0,1,1,pv,1400000000\n")
    ours, plain = (
        PrepareConfig(source="taobao", input=log, output=tmp_path / name, buckets=4) for name in ("ours", "plain")
    )
    manifest = prepare(ours, Console(quiet=True))
    polars_prepare.prepare(plain)
    assert sum(manifest["spans"][-1]["users"]) < 20_000 // 175  # some had too few interactions
    files = [path.relative_to(ours.output) for path in ours.output.glob("*/*[!json]")]
    files = sorted(path for path in files if path.parts[0] != "rejected")
    assert len(files) == 7 * (4 + 3) + 1
    for file in files:
        assert _rows(ours.output / file) == _rows(plain.output / file)


def _rows(path: Path):
    """Each column of a file as lists, whatever its types."""
    table = pq.read_table(path, partitioning=None) if path.suffix == ".parquet" else pa.ipc.open_file(path).read_all()
    return table.to_pydict()


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--rows", "[5]"], "rows"),
        (["--rows", "[20000, 10000]"], "rows"),
        (["--polars_rows", "30000"], "polars_rows"),
        (["--memory_limit", "little"], "memory_limit"),
        (["--repeats", "0"], "repeats"),
        (["--buckets", "0"], "buckets"),
        (["--folder", "missing"], "folder"),
        (["--json", "missing/figures.json"], "json"),
    ],
)
def test_impossible_options_are_refused_in_one_line(arguments, key, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", *TINY, *arguments])
    assert stopped.value.code == 2
    assert key in capsys.readouterr().err


def test_a_side_that_fails_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert main(["prepare", *TINY, "--folder", str(tmp_path)]) == 1
    assert "prepare.py ended with 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
