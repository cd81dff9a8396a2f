"""The prepared folder equals that of a slow preparation in plain Python; errors leave nothing behind."""

import csv
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
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

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY.parent / "shared" / "data" / "taobao" / "UserBehavior.csv"
FIRST, LAST = TAOBAO_WINDOW
POSITIONS = ColumnsConfig(user="0", item="1", time="2")

Row = tuple[Any, Any, int]  # user, item, time
Sequences = dict[tuple[int, int], dict[int, list[tuple[int, int, bool]]]]  # span, bucket -> user -> item, time, met


def quietly(config: PrepareConfig) -> dict[str, Any]:
    return prepare(config, Console(quiet=True))


def slowly(rows: Sequence[Row], min_interactions: int, alpha: float, spans: int, buckets: int) -> dict[str, Any]:
    """Design.md section 6, one row at a time."""
    counts = Counter(user for user, _, _ in rows)
    kept = sorted(
        (row for row in rows if counts[row[0]] >= min_interactions), key=lambda row: row[2]
    )  # stable: ties stay
    of_item = Counter(item for _, item, _ in kept)
    first, last = kept[0][2], kept[-1][2]
    pretraining = Fraction(str(alpha)) * (last - first)
    width = (last - first - pretraining) / spans
    exact = [first, *(first + pretraining + width * span for span in range(spans + 1))]
    items: dict[Any, int] = {}
    first_times: list[int] = []
    users_of: dict[int, dict[Any, None]] = {bucket: {} for bucket in range(buckets)}
    for user, item, when in kept:
        if item not in items:
            items[item] = len(items)
            first_times.append(when)
        users_of[int(hashlib.md5(str(user).encode()).hexdigest()[:16], 16) % buckets].setdefault(user)
    users = {user: number for number, user in enumerate(user for own in users_of.values() for user in own)}
    bucket_of = {user: bucket for bucket, own in users_of.items() for user in own}
    sequences: Sequences = {(span, bucket): defaultdict(list) for span in range(spans + 1) for bucket in range(buckets)}
    met: dict[tuple[int, int], int] = {}
    known = [0] * (spans + 1)
    for user, item, when in kept:
        span = max(span for span in range(spans + 1) if when >= exact[span])
        met.setdefault((users[user], items[item]), span)
        entry = (items[item], when, met[users[user], items[item]] < span)
        sequences[span, bucket_of[user]][users[user]].append(entry)
        known[span] = max(known[span], items[item] + 1)
    return {
        "span_edges": [math.ceil(edge) for edge in exact],
        "items_by_span": [max(known[: span + 1]) for span in range(spans + 1)],
        "bucket_offsets": np.cumsum([0, *map(len, users_of.values())]).tolist(),
        "users": [(number, user, bucket_of[user], counts[user]) for user, number in users.items()],
        "items": [(number, item, first_times[number], of_item[item]) for item, number in items.items()],
        "sequences": {key: dict(value) for key, value in sequences.items()},
    }


def read(folder: Path) -> dict[str, Any]:
    """A prepared folder in the format of `slowly`."""
    manifest = json.loads((folder / "dataset.json").read_text())
    sequences: Sequences = {}
    for span in range(len(manifest["items_by_span"])):
        for bucket in range(len(manifest["bucket_offsets"]) - 1):
            path = folder / f"span={span}" / f"bucket={bucket:03d}.arrow"
            with pa.ipc.open_file(pa.memory_map(str(path))) as file:
                assert file.num_record_batches == 1
                batch = file.get_batch(0)
            users = batch["user"].to_pylist()
            assert users == sorted(users)
            lists = zip(*(batch[name].to_pylist() for name in ("items", "times", "met_before")), strict=True)
            rows = [list(zip(*columns, strict=True)) for columns in lists]
            sequences[span, bucket] = dict(zip(users, rows, strict=True))
    users, items = (pq.read_table(folder / f"{name}.parquet") for name in ("users", "items"))
    assert users.column_names == ["user", "raw", "bucket", "interactions"]
    assert items.column_names == ["item", "raw", "first_time", "interactions"]
    return {
        **{key: manifest[key] for key in ("span_edges", "items_by_span", "bucket_offsets")},
        "users": list(zip(*(column.to_pylist() for column in users.columns), strict=True)),
        "items": list(zip(*(column.to_pylist() for column in items.columns), strict=True)),
        "sequences": sequences,
    }


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


@settings(max_examples=40, deadline=None)
@example(rows=[("a", "x", 5), ("b", "y", 5), ("a", "y", 0), ("b", "x", 9)], least=1, alpha=0.5, spans=1, buckets=1)
@given(
    rows=logs,
    least=st.integers(1, 4),
    alpha=st.sampled_from([0.5, 0.1, 1 / 3, 0.9]),
    spans=st.integers(1, 4),
    buckets=st.integers(1, 4),
)
def test_equals_a_slow_preparation(rows: list[Row], least: int, alpha: float, spans: int, buckets: int) -> None:
    assume(max(Counter(user for user, _, _ in rows).values()) >= least)
    expected = slowly(rows, least, alpha, spans, buckets)
    assume(len(set(expected["span_edges"])) == spans + 2)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "prepared")
        config = PrepareConfig(
            source="csv",
            input=write_csv(Path(folder, "log.csv"), rows),
            output=output,
            columns=POSITIONS,
            min_interactions=least,
            alpha=alpha,
            spans=spans,
            buckets=buckets,
            threads=1,
        )
        manifest = quietly(config)
        assert read(output) == expected
        lengths = [
            [len(row) for bucket in range(buckets) for row in expected["sequences"][span, bucket].values()]
            for span in range(spans + 1)
        ]
        assert manifest["interactions_per_span"] == [sum(span) for span in lengths]
        assert manifest["active_users_per_span"] == [len(span) for span in lengths]
        trainable = [sum(length == 2 or length >= 4 for length in span) for span in lengths]
        assert manifest["trainable_users_per_span"] == trainable
        assert manifest["interactions"] == sum(map(sum, lengths))
        assert manifest["rows_read"] == len(rows)
        assert (manifest["users"], manifest["items"]) == (len(expected["users"]), len(expected["items"]))


@pytest.mark.skipif(not SAMPLE.is_file(), reason=f"{SAMPLE} is absent")
def test_taobao_sample(tmp_path: Path) -> None:
    lines = [line.split(",") for line in SAMPLE.read_text().split("\n") if line]
    whole = [line for line in lines if len(line) == 5]
    rows = [(int(user), int(item), int(when)) for user, item, _, behaviour, when in whole if behaviour == "pv"]
    inside = [row for row in rows if FIRST <= row[2] <= LAST]
    expected = slowly(inside, 30, 0.5, 6, 64)
    manifest = quietly(PrepareConfig(source="taobao", input=SAMPLE, output=tmp_path / "out"))
    assert read(tmp_path / "out") == expected
    assert manifest["rows_read"] == len(lines)
    outside = sum(not FIRST <= int(line[4]) <= LAST for line in whole)
    assert manifest["rejected"] == {"outside the public window": outside, "wrong column count": len(lines) - len(whole)}


def test_ties_keep_the_order_of_a_long_input_whatever_the_machine(tmp_path: Path) -> None:
    # Long enough for several threads to read, sort and merge; few seconds, so that most rows are tied.
    n, random = 1_500_000, np.random.default_rng(0)
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

    raw = pq.read_table(tmp_path / "1" / "users.parquet")["raw"].to_numpy()
    known = pq.read_table(tmp_path / "1" / "items.parquet")["raw"].to_numpy()
    order = np.lexsort((np.arange(n), times, users))
    mine = Dataset(DataConfig(tmp_path / "1", verify=True))
    sequences: dict[int, list[np.ndarray]] = defaultdict(list)
    for span in range(mine.spans):
        for bucket in range(mine.buckets):
            part = mine.sequences(span, bucket)
            for place, user in enumerate(part.users):
                sequences[raw[user]].append(known[part.items[part.offsets[place] : part.offsets[place + 1]]])
    prepared = np.concatenate([np.concatenate(sequences[user]) for user in range(3000)])
    assert np.array_equal(prepared, items[order])
    by_time = items[np.argsort(times, kind="stable")]
    _, first = np.unique(by_time, return_index=True)
    assert np.array_equal(known, by_time[np.sort(first)])


def test_the_manifest_has_files_options_and_types(tmp_path: Path) -> None:
    config = PrepareConfig(source="taobao", input=clicks(tmp_path / "log"), output=tmp_path / "a" / "out", buckets=3)
    manifest = quietly(config)
    output = tmp_path / "a" / "out"
    assert json.loads((output / "dataset.json").read_text()) == manifest
    names = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert names == {*manifest["files"], "dataset.json"}
    for name, entry in manifest["files"].items():
        content = (output / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert sum(manifest["files"][f"span=0/bucket={bucket:03d}.arrow"]["rows"] for bucket in range(3)) == 5
    read_as = {"comma, no header, utf-8, times in s": 1}
    assert manifest["source"] == {"name": "taobao", "input": str(tmp_path / "log"), "read_as": read_as}
    expected = {"min_interactions": 30, "alpha": 0.5, "spans": 6, "buckets": 3, "behaviours": ["pv"]}
    assert manifest["options"] == expected
    batch = pa.ipc.open_file(str(output / "span=0" / "bucket=000.arrow")).get_batch(0)
    kinds = [pa.int32(), pa.list_(pa.int32()), pa.list_(pa.int64()), pa.list_(pa.bool_())]
    assert batch.schema.types == kinds
    assert pq.read_schema(output / "items.parquet").types == [pa.int32(), pa.int64(), pa.int64(), pa.int64()]
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
    manifest = quietly(config)
    assert manifest["rejected"] == {
        "wrong column count": 2,
        "empty id": 1,
        "negative time": 1,
        "non-numeric id": 1,
        "outside the public window": 1,
    }
    assert manifest["rows_read"] == 206
    kept = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert [row["line"] for row in kept] == [201, 202, 203, 204, 205, 206]
    assert [row["raw"] for row in kept] == bad
    assert [row["reason"] for row in kept[:3]] == ["outside the public window", "wrong column count", "non-numeric id"]


def test_a_line_that_is_too_long_is_kept_in_part(tmp_path: Path) -> None:
    path = clicks(tmp_path / "log", 200, [f"1,{'2' * 3_000_000},1,pv,{FIRST}"])
    manifest = quietly(PrepareConfig(source="taobao", input=path, output=tmp_path / "out"))
    assert manifest["rejected"] == {"line too long": 1}
    [row] = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert row == {"file": str(path), "line": 201, "reason": "line too long", "raw": "1," + "2" * 998}


def test_only_the_first_thousand_rejected_rows_are_kept(tmp_path: Path) -> None:
    bad = ["1,2,1,pv", "1,2,1,pv,-1"] * 700
    config = PrepareConfig(
        source="taobao", input=clicks(tmp_path / "log", 200, bad), output=tmp_path / "out", max_bad_fraction=0.9
    )
    assert quietly(config)["rejected"] == {"negative time": 700, "wrong column count": 700}
    assert pq.read_table(tmp_path / "out" / "rejected.parquet")["line"].to_pylist() == list(range(201, 1201))


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
    monkeypatch.setattr("dist_imsr.data.prepare.BYTES_PER_ROW", 2**23)
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
    assert quietly(config)["interactions"] == 150
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["interactions"] == 150
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
    assert process.returncode == 130
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
