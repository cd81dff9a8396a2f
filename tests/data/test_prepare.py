"""The prepared folder equals that of a slow preparation in plain Python; errors leave nothing behind."""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from dist_imsr.config import parse
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.prepare import PrepareConfig, prepare
from dist_imsr.data.raw_formats import TAOBAO_WINDOW
from dist_imsr.data.sources import ColumnsConfig
from dist_imsr.data.writer import SpanWriter
from launch.prepare import main
from tests.data.slow_preparation import Row, read, shared_edges, slowly

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY.parent / "shared" / "data" / "taobao" / "UserBehavior.csv"
FIRST, LAST = TAOBAO_WINDOW
POSITIONS = ColumnsConfig(user="0", item="1", time="2")


def quietly(config: PrepareConfig) -> dict[str, Any]:
    return prepare(config, Console(quiet=True))


def record_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of the last preparation."""
    return manifest["preparations"][-1]


def write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def clicks(path: Path, n: int = 200, bad: Sequence[str] = ()) -> Path:
    """A valid UserBehavior.csv of 5 users, with the bad lines at its end."""
    lines = [f"{row % 5},{row % 17},1,pv,{FIRST + row * 3000}" for row in range(n)]
    path.write_text("\n".join([*lines, *bad]) + "\n")
    return path


# Few users, items and times, so that ties, repeats and empty spans are common.
logs = st.lists(
    st.tuples(st.sampled_from("abcdeé"), st.sampled_from(["x", "y", "z", "0", "00"]), st.integers(0, 40)),
    min_size=1,
    max_size=60,
)
cuts = st.one_of(  # alpha and spans, or edges
    st.tuples(st.sampled_from([0.5, 0.1, 1 / 3, 0.9]), st.integers(1, 4)),
    st.lists(st.integers(1, 45), min_size=1, max_size=4, unique=True).map(sorted),
)


@settings(max_examples=25, deadline=None)
@example(
    rows=[("a", "x", 5), ("b", "y", 5), ("a", "y", 0), ("b", "x", 9)], least=1, cut=(0.5, 1), buckets=1, so_far=False
)
@example(rows=[("a", "x", 0), ("a", "y", 0), ("b", "x", 9)], least=2, cut=[5, 10], buckets=1, so_far=True)
@example(  # who comes first does not enter first
    rows=[("a", "x", 0), ("b", "y", 1), ("b", "x", 2), ("a", "z", 3), ("b", "x", 9)],
    least=2,
    cut=[3, 10],
    buckets=1,
    so_far=True,
)
@given(rows=logs, least=st.integers(1, 4), cut=cuts, buckets=st.integers(1, 4), so_far=st.booleans())
def test_equals_a_slow_preparation(
    rows: list[Row], least: int, cut: tuple[float, int] | list[int], buckets: int, so_far: bool
) -> None:
    inside = [row for row in rows if row[2] < cut[-1]] if isinstance(cut, list) else rows
    assume(max(Counter(user for user, _, _ in inside).values(), default=0) >= least)
    if isinstance(cut, list):
        first = min(when for *_, when in rows)
        edges, options = [first, *cut] if first < cut[0] else None, {"span_edges": [*map(str, cut)]}
    else:
        edges, options = shared_edges(rows, least, *cut), {"alpha": cut[0], "spans": cut[1]}
    assume(edges is not None)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "prepared")
        config = PrepareConfig(
            source="csv",
            input=write_csv(Path(folder, "log.csv"), rows),
            output=output,
            columns=POSITIONS,
            min_interactions=least,
            count_users="so_far" if so_far else "whole_log",
            buckets=buckets,
            threads=1,
            **options,
        )
        record = record_of(quietly(config))
        assert read(output) == slowly(inside, edges, least, buckets, so_far)
        assert (record["rows_read"], record["spans"]) == (len(rows), [0, len(edges) - 2])
        assert record["left_out"].get("until and later", 0) == len(rows) - len(inside)


@pytest.mark.skipif(not SAMPLE.is_file(), reason=f"{SAMPLE} is absent")
def test_taobao_sample(tmp_path: Path) -> None:
    lines = [line.split(",") for line in SAMPLE.read_text().split("\n") if line]
    whole = [line for line in lines if len(line) == 5]
    rows = [(int(user), int(item), int(when)) for user, item, _, behaviour, when in whole if behaviour == "pv"]
    inside = [row for row in rows if FIRST <= row[2] <= LAST]
    expected = slowly(inside, shared_edges(inside, 30, 0.5, 6), 30, 64)
    record = record_of(quietly(PrepareConfig(source="taobao", input=SAMPLE, output=tmp_path / "out")))
    assert read(tmp_path / "out") == expected
    assert record["rows_read"] == len(lines)
    outside = sum(not FIRST <= int(line[4]) <= LAST for line in whole)
    assert record["rejected"] == {"outside the public window": outside, "wrong column count": len(lines) - len(whole)}


def test_ties_keep_the_order_of_a_long_input_whatever_the_machine(tmp_path: Path) -> None:
    # Long enough for several threads to read, sort and merge; few seconds, so that most rows are tied.
    n, random = 600_000, np.random.default_rng(0)
    users, items = random.integers(0, 3000, n), random.integers(0, 100_000, n)
    times = random.integers(0, 50, n)
    table = pa.table({"user": users, "item": items, "time": times})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=50_000)
    manifests = []
    for number, (threads, memory) in enumerate([(1, "4GiB"), (4, "256MiB")]):
        config = PrepareConfig(
            source="parquet",
            input=tmp_path / "log.parquet",
            output=tmp_path / str(number),
            spans=2,
            buckets=5,
            threads=threads,
            memory_limit=memory,
        )
        manifests.append(quietly(config))
    assert manifests[0] == manifests[1]  # checksums of all files included

    order = np.lexsort((np.arange(n), times, users))
    mine = Dataset(DataConfig(tmp_path / "1", verify=True))
    known = mine.raw_ids("items", np.arange(mine.items_by_span[-1])).to_numpy()
    sequences: dict[int, list[np.ndarray]] = defaultdict(list)
    for span in range(mine.spans):
        for bucket in range(mine.buckets):
            part = mine.sequences(span, bucket)
            for place, user in enumerate(mine.raw_ids("users", part.users).to_pylist()):
                sequences[user].append(known[part.items[part.offsets[place] : part.offsets[place + 1]]])
    prepared = np.concatenate([np.concatenate(sequences[user]) for user in range(3000)])
    assert np.array_equal(prepared, items[order])
    by_time = items[np.argsort(times, kind="stable")]
    _, first = np.unique(by_time, return_index=True)
    assert np.array_equal(known, by_time[np.sort(first)])


def test_the_manifest_has_files_options_and_types(tmp_path: Path) -> None:
    log, output = clicks(tmp_path / "log"), tmp_path / "a" / "out"
    manifest = quietly(PrepareConfig(source="taobao", input=log, output=output, buckets=3))
    assert json.loads((output / "dataset.json").read_text()) == manifest
    assert set(manifest["files"]) == {"waiting/span=6.parquet", "rejected/0000.parquet"}
    of_span = json.loads((output / "span=0" / "manifest.json").read_text())["files"]
    buckets = {f"span=0/bucket={bucket:03d}.arrow" for bucket in range(3)}
    assert set(of_span) == {*buckets, "span=0/item_counts.arrow", "users/span=0.parquet", "items/span=0.parquet"}
    assert sum(of_span[name]["rows"] for name in buckets) == 5
    assert (manifest["format_version"], manifest["source"], manifest["n_buckets"]) == (2, "taobao", 3)
    options = {"min_interactions": 30, "alpha": 0.5, "spans": 6, "buckets": 3, "count_users": "whole_log"}
    assert manifest["options"] == options | {"behaviours": ["pv"]}
    assert record_of(manifest) == {
        "input": [str(log)],
        "digests": [xxhash.xxh3_128_hexdigest(log.read_bytes())],
        "from": None,
        "until": None,
        "spans": [0, 6],
        "read_as": {"comma, no header, utf-8, times in s": 1},
        "rows_read": 200,
        "rejected": {},
        "left_out": {},
    }
    batch = pa.ipc.open_file(str(output / "span=0" / "bucket=000.arrow")).get_batch(0)
    assert batch.schema.types == [pa.int64(), pa.list_(pa.int32()), pa.list_(pa.int64()), pa.list_(pa.bool_())]
    types = {table: pq.read_schema(output / table / "span=0.parquet").types for table in ("users", "items")}
    assert types == {"users": [pa.int64(), pa.int64()], "items": [pa.int32(), pa.int64()]}
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a", tmp_path / "log"]
    assert list((tmp_path / "a").iterdir()) == [output]


def test_rejected_rows_are_counted_and_kept_with_their_lines(tmp_path: Path) -> None:
    bad = [f"1,2,1,pv,{FIRST - 9}", "1,2,1,pv", f"x,2,1,pv,{FIRST}", "1,,1,pv,7", f"1,2,1,pv,{FIRST},5", "1,2,1,pv,-1"]
    config = PrepareConfig(
        source="taobao",
        input=clicks(tmp_path / "log", 200, bad),
        output=tmp_path / "out",
        buckets=2,
        max_bad_fraction=0.1,
    )
    record = record_of(quietly(config))
    assert record["rejected"] == {
        "wrong column count": 2,
        "empty id": 1,
        "negative time": 1,
        "non-numeric id": 1,
        "outside the public window": 1,
    }
    assert record["rows_read"] == 206
    kept = pq.read_table(tmp_path / "out" / "rejected" / "0000.parquet").to_pylist()
    assert [row["line"] for row in kept] == [201, 202, 203, 204, 205, 206]
    assert [row["raw"] for row in kept] == bad
    assert [row["reason"] for row in kept[:3]] == ["outside the public window", "wrong column count", "non-numeric id"]


def test_a_line_that_is_too_long_is_kept_in_part(tmp_path: Path) -> None:
    path = clicks(tmp_path / "log", 200, [f"1,{'2' * 3_000_000},1,pv,{FIRST}"])
    manifest = quietly(PrepareConfig(source="taobao", input=path, output=tmp_path / "out"))
    assert record_of(manifest)["rejected"] == {"line too long": 1}
    [row] = pq.read_table(tmp_path / "out" / "rejected" / "0000.parquet").to_pylist()
    assert row == {"file": str(path), "line": 201, "reason": "line too long", "raw": "1," + "2" * 998}


def test_only_the_first_thousand_rejected_rows_are_kept(tmp_path: Path) -> None:
    bad = ["1,2,1,pv", "1,2,1,pv,-1"] * 700
    config = PrepareConfig(
        source="taobao", input=clicks(tmp_path / "log", 200, bad), output=tmp_path / "out", max_bad_fraction=0.9
    )
    assert record_of(quietly(config))["rejected"] == {"negative time": 700, "wrong column count": 700}
    kept = pq.read_table(tmp_path / "out" / "rejected" / "0000.parquet")
    assert kept["line"].to_pylist() == list(range(201, 1201))


def refused(tmp_path: Path, message: str, **changes: Any) -> None:
    """Preparation fails with an error and leaves nothing behind."""
    values = {"source": "taobao", "input": tmp_path / "log", "output": tmp_path / "new" / "out"} | changes
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        quietly(PrepareConfig(**values))
    assert sorted(tmp_path.rglob("*")) == before


def test_too_many_bad_rows(tmp_path: Path) -> None:
    clicks(tmp_path / "log", 197, ["1,2,1,pv,-1", "x,2,1,pv,5", "1,2,1,pv,-2"])
    message = r"3 of 200 rows are bad.*max_bad_fraction 0.01: 2 negative time, 1 non-numeric id; line 198 .*1,2,1,pv,-1"
    refused(tmp_path, message)
    clicks(tmp_path / "log", 198, ["1,2,1,pv,-1", "x,2,1,pv,5"])
    quietly(PrepareConfig(source="taobao", input=tmp_path / "log", output=tmp_path / "out"))  # 1 % is no more than 1 %


def test_no_user_left(tmp_path: Path) -> None:
    clicks(tmp_path / "log", 203)
    refused(tmp_path, r"no user .* has 50.*the busiest user has 41 interactions", min_interactions=50)
    refused(tmp_path, r"the busiest user has 0 interactions", behaviours=["buy"])


def test_headers_only(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("user,item,time\n")
    refused(tmp_path, "log holds no rows", source="csv")


def test_time_too_short_for_spans(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("user,item,time\na,x,7\na,y,7\na,x,9\n")
    refused(tmp_path, r"spans: .* within 2 seconds, too little for 6 spans", source="csv", min_interactions=1)
    refused(tmp_path, r"input: .*missing does not exist", input=tmp_path / "missing")


def test_a_bucket_that_exceeds_the_memory_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clicks(tmp_path / "log")
    monkeypatch.setattr("dist_imsr.data.preparation.BYTES_PER_ROW", 2**23)
    refused(
        tmp_path, r"buckets: 1 are too few for memory_limit 256MiB.*use 13 or more", buckets=1, memory_limit="256MiB"
    )


def test_a_list_that_is_too_long_for_arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clicks(tmp_path / "log")
    monkeypatch.setattr("dist_imsr.data.writer._LONGEST_LIST", 99)
    refused(tmp_path, r"buckets: span 0 of bucket 0 has 100 interactions; use more buckets", buckets=1)


def test_other_folders_are_not_overwritten(tmp_path: Path) -> None:
    clicks(tmp_path / "log")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.png").touch()
    refused(tmp_path, "photos exists; choose another or replace it", output=tmp_path / "photos")
    refused(tmp_path, "photos is no prepared data set.*not overwritten", output=tmp_path / "photos", overwrite=True)
    refused(tmp_path, "log is no prepared data set", output=tmp_path / "log", overwrite=True)
    refused(tmp_path, "output: .* cannot be written", output=tmp_path / "log" / "out")
    refused(tmp_path, "temp_dir: .* cannot be written", temp_dir=tmp_path / "missing")


def test_overwrite_replaces_only_when_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PrepareConfig(
        source="taobao", input=clicks(tmp_path / "log"), output=tmp_path / "out", overwrite=True, buckets=2
    )
    old = quietly(config)
    clicks(tmp_path / "log", 150)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SpanWriter, "write", fail)
        with pytest.raises(KeyboardInterrupt):
            quietly(config)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == old
    assert sorted(tmp_path.iterdir()) == [tmp_path / "log", tmp_path / "out"]
    new = quietly(config)
    assert sum(entry["interactions"] for entry in new["spans"]) == 150
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == new
    assert sorted(tmp_path.iterdir()) == [tmp_path / "log", tmp_path / "out"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing(tmp_path: Path, sent: signal.Signals) -> None:
    n = 4_000_000  # seconds of work, in DuckDB for most of them
    table = pa.table({"user": np.arange(n) % 1000, "item": np.arange(n) * 7919 % 1_000_003, "time": np.arange(n)})
    pq.write_table(table, tmp_path / "log.parquet")
    spill = tmp_path / "spill"
    spill.mkdir()
    arguments = f"--source parquet --input {tmp_path}/log.parquet --output {tmp_path}/data/out --temp_dir {spill}"
    command = [sys.executable, str(REPOSITORY / "launch" / "prepare.py"), *arguments.split()]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True)
    deadline = time.monotonic() + 60
    while not list(spill.glob("*/prepare.duckdb")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    *phases, last = errors.splitlines()
    assert last == "prepare.py: stopped; nothing was written"
    assert all(line.endswith(" s") for line in phases)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "log.parquet", spill]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return main()


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clicks(tmp_path / "log", 199, ["1,2,1,pv,-1"])
    arguments = ("--source", "taobao", "--input", tmp_path / "log", "--output", tmp_path / "out", "--spans", 2)
    assert run(monkeypatch, *arguments) == 0
    out, err = capsys.readouterr()
    [row] = [line for line in out.splitlines() if "taobao" in line]
    assert row.replace("│", " ").split() == ["taobao", "5", "17", "99", "50", "50"]
    assert "200 rows read; rejected: 1 negative time" in out
    assert f"written to {tmp_path / 'out'}" in err
    assert [line.split(":")[0] for line in err.splitlines()[:5]] == ["read", "users", "items", "sort", "write"]
    assert run(monkeypatch, *arguments) == 2
    _, err = capsys.readouterr()
    assert err == f"prepare.py: output: {tmp_path / 'out'} exists; choose another or replace it with --overwrite true\n"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("alpha", "1"),
        ("alpha", "0"),
        ("spans", "0"),
        ("buckets", "0"),
        ("min_interactions", "0"),
        ("memory_limit", "lots"),
        ("memory_limit", "1MiB"),
        ("threads", "0"),
        ("max_bad_fraction", "1"),
        ("source", "tabao"),
        ("columns.user", "u"),
        ("spans", "six"),
        ("speed", "1"),
    ],
)
def test_impossible_arguments(key: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(PrepareConfig, ["--source", "taobao", "--input", "log", "--output", "out", f"--{key}", value])
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert key.split(".")[0] in errors
    assert len(errors.splitlines()) == 1
