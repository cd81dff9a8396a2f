"""Forgotten users leave no trace in prepared data, and all others' rows and ids are as before."""

import csv
import io
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.drift import DriftConfig
from dist_imsr.data.prepare import PrepareConfig, prepare
from launch.prepare import main
from tests.kills import contents, killed_at

DAY = 86_400
START = 1_600_041_600  # a midnight in UTC
Row = tuple[str, str, int]  # user, item, time
Rows = dict[tuple[str, int], list[tuple[str, int, bool]]]  # user, span -> item, time, met before


def write_log(path: Path, rows: Sequence[Row], bad: Sequence[str] = ()) -> Path:
    text = io.StringIO()
    csv.writer(text).writerows([("user", "item", "time"), *rows])
    path.write_text(text.getvalue() + "".join(f"{line}\n" for line in bad))
    return path


def prepared(log: Path, output: Path, **changes: Any) -> Path:
    options = {"min_interactions": 1, "buckets": 2, "span_every": "1d", "pretrain_until": START + DAY}
    options |= {"count_users": "so_far", "max_bad_fraction": 0.9}
    prepare(PrepareConfig(source="csv", input=log, output=output, threads=1, **options | changes), Console(quiet=True))
    return output


def forget(data: Path, *names: str) -> str:
    """The first line of what the command prints."""
    path = data.parent / f"{data.name}.txt"
    path.write_text("".join(f"{name}\n" for name in names))
    console = Console(file=io.StringIO())
    prepare(PrepareConfig(append=data, forget_users=path, threads=1), console)
    return console.file.getvalue().splitlines()[0]


def append(data: Path, log: Path) -> Dataset:
    prepare(PrepareConfig(append=data, input=log, max_bad_fraction=0.0, threads=1), Console(quiet=True))
    return Dataset(DataConfig(data, verify=True))


def rows_of(dataset: Dataset) -> Rows:
    """All kept interactions by raw id."""
    found: Rows = {}
    for span in range(dataset.first_kept, dataset.spans):
        for bucket in range(dataset.buckets):
            part = dataset.sequences(span, bucket)
            users = dataset.raw_ids("users", part.users).to_pylist()
            items = dataset.raw_ids("items", part.items).to_pylist()
            rows = list(zip(items, part.times.tolist(), part.met_before.tolist(), strict=True))
            for user, first, end in zip(users, part.offsets, part.offsets[1:], strict=False):
                found[user, span] = rows[first:end]
    return found


def counts_of(dataset: Dataset, span: int) -> Counter[str]:
    """The counts of a span's entry, one user after the other."""
    counts, entries = Counter[str](), dataset.entries
    for bucket in range(dataset.buckets):
        part = dataset.sequences(span, bucket)
        for user, first, end in zip(part.users.tolist(), part.offsets, part.offsets[1:], strict=False):
            length, local = int(end - first), user // dataset.buckets
            returning = span > 0 and local < entries[span - 1].users[bucket]
            new = sum(item >= (entries[span - 1].items if span else 0) for item in part.items[first:end])
            counts.update(
                interactions=length,
                active_users=1,
                trainable_users=int(length == 2 or length >= 4),
                split_users=int(length >= 3),
                tested_users=int(length >= 3 and returning),
                interactions_with_new_items=int(new),
                interactions_of_returning_users=length * returning,
            )
    return counts


def values_of(data: Path) -> Iterator[str]:
    """Every value in every file as text, and the text of every JSON file."""
    for path in (path for path in data.rglob("*") if path.is_file() and path.name != ".lock"):
        if path.suffix == ".json":
            yield path.read_text()
            continue
        table = pa.ipc.open_file(path).read_all() if path.suffix == ".arrow" else pq.ParquetFile(path).read()
        assert table.num_columns
        yield str(table.schema.metadata)
        for column in table.columns:
            yield from map(str, column.to_pylist())


USERS = "abcdefgh"
times = st.integers(0, 4 * DAY - 1).map(lambda time: START + time)
logs = st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from("uvwxyz"), times), min_size=5, max_size=60)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=logs, names=st.sets(st.sampled_from(USERS), min_size=1), least=st.sampled_from([1, 3]))
def test_others_are_as_before(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], names: set[str], least: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    always = [("always", item, START + day * DAY) for day in range(4) for item in "uvw"]
    data = prepared(write_log(folder / "log.csv", always + rows), folder / "data", min_interactions=least)
    before = Dataset(DataConfig(data))
    expected = {key: value for key, value in rows_of(before).items() if key[0] not in names}
    ids = {user: before.user_ids(pa.array([user]))[0] for user, _ in rows_of(before)}
    twin = shutil.copytree(data, folder / "twin")
    forget(data, *names)
    after = Dataset(DataConfig(data, verify=True))
    assert rows_of(after) == expected
    assert names.isdisjoint(values_of(data))
    assert (after.digests, after.users) == (before.digests, before.users)
    for span, entry in enumerate(after.entries):
        counts = counts_of(after, span)
        assert {name: getattr(entry, name) for name in counts} == counts
        assert counts or not entry.interactions
    for user, number in ids.items():
        assert after.user_ids(pa.array([user])).tolist() == [-1 if user in names else number]
    # Those who come back are new, and nobody else notices.
    later = write_log(folder / "later.csv", [(user, item, START + 4 * DAY) for user in USERS for item in "xyz"])
    grown, control = append(data, later), append(twin, later)
    others = {key: rows for key, rows in rows_of(control).items() if key[0] not in names}
    assert {key: rows for key, rows in rows_of(grown).items() if key[0] not in names} == others
    for user in ids.keys() - names:
        assert grown.user_ids(pa.array([user])) == ids[user]
    for user in names & ids.keys():
        assert grown.user_ids(pa.array([user]))[0] not in ids.values()
        assert not any(met for _, _, met in rows_of(grown)[user, 4])


BAD = ["alice,u,never", "alice2,u,never", '"bob ""b"" bobson",u,never', "x,alice,never", "carol,u,never"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three days of alice, bob, dave and erin; carol waits."""
    rows = [
        (user, item, START + day * DAY) for user in ("alice", 'bob "b" bobson') for day in range(3) for item in "uv"
    ]
    rows += [("dave", item, START + day * DAY) for day in range(3) for item in "uvwx"]
    rows += [("carol", "u", START + DAY), ("erin", "u", START + 2 * DAY), ("erin", "v", START + 2 * DAY)]
    return prepared(write_log(tmp_path / "log.csv", rows, BAD), tmp_path / "data", min_interactions=2, buckets=2)


def test_what_is_printed(data: Path) -> None:
    rows = "6 rows (span 0: 2, span 1: 2, span 2: 2), 1 waiting row, 3 rejected rows"
    assert forget(data, "alice", "carol", "no") == f"forgot 1 user: {rows}; 2 other ids of the list had no id here"
    nothing = "forgot 0 users: 0 rows, 0 waiting rows, 0 rejected rows; 1 other id of the list had no id here"
    assert forget(data, "alice") == nothing


def test_only_files_with_the_user_are_written(data: Path) -> None:
    before = contents(data)
    inodes = {path.relative_to(data): path.stat().st_ino for path in data.rglob("*")}
    forget(data, "erin")
    dataset = Dataset(DataConfig(data, verify=True))
    assert [entry.name for entry in dataset.entries] == ["0", "1", "2.1"]
    after = contents(data)
    changed = {name for name, content in after.items() if before.get(name.replace("=2.1", "=2")) != content}
    [erins] = changed - {"dataset.json", "span=2.1/manifest.json", "users/span=2.1.parquet"}
    assert erins.startswith("span=2.1/bucket=")
    assert (data / "items" / "span=2.1.parquet").stat().st_ino == inodes[Path("items", "span=2.parquet")]
    forget(data, "alice")
    assert [entry.name for entry in Dataset(DataConfig(data)).entries] == ["0.1", "1.1", "2.2"]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("alice", [1, 2, 4]),  # also as an item: rather too often
        ('bob "b" bobson', [0, 1, 3, 4]),
        ("alic", [0, 1, 2, 3, 4]),
        ("007", [0, 1, 2, 3, 4]),
    ],
)
def test_rejected_rows_that_may_name_a_user_go(data: Path, name: str, kept: list[int]) -> None:
    [path] = (data / "rejected").iterdir()
    texts = pq.ParquetFile(path).read()["raw"].to_pylist()
    assert len(texts) == len(BAD)
    forget(data, name)
    [path] = (data / "rejected").iterdir()
    assert pq.ParquetFile(path).read()["raw"].to_pylist() == [texts[place] for place in kept]


@pytest.mark.parametrize(
    ("text", "goes"),
    [("7,u,x", True), ("007,u,x", True), ("77,u,x", False), ('{"user": "\\u00e4b"}', True), ("y" * 1000, True)],
)
def test_other_forms_of_an_id_are_found(tmp_path: Path, text: str, goes: bool) -> None:
    rows = [(user, item, START + day * DAY) for user in ("7", "äb", "ok") for day in range(2) for item in "uv"]
    data = prepared(write_log(tmp_path / "log.csv", rows, [text]), tmp_path / "data", max_bad_fraction=0.5)
    assert len(pq.ParquetFile(data / "rejected" / "0000.parquet").read()) == 1
    forget(data, "7", "äb")
    [path] = (data / "rejected").iterdir()
    assert len(pq.ParquetFile(path).read()) == (not goes)


def test_raw_ids_of_retired_spans_go_too(data: Path) -> None:
    prepare(PrepareConfig(append=data, retire_before=2), Console(quiet=True))
    before = Dataset(DataConfig(data))
    popularity = before.popularity(range(4), 2).tolist()
    forget(data, "alice")
    with pytest.raises(ValueError, match="gone: another command has changed the data"):
        before.popularity(range(4), 2)
    after = Dataset(DataConfig(data, verify=True))
    assert "alice" not in values_of(data)
    assert [entry.name for entry in after.entries] == ["0.1", "1", "2.1"]
    assert [entry.interactions for entry in after.entries][:2] == [entry.interactions for entry in before.entries][:2]
    assert after.popularity(range(4), 2).tolist() == popularity


def test_planted_truth_forgets(tmp_path: Path) -> None:
    drift = DriftConfig(users=20, items=100, clusters=10, interactions=[400, 200])
    options = {"min_interactions": 1, "buckets": 2, "threads": 1, "drift": drift}
    prepare(PrepareConfig(source="drift", output=tmp_path / "data", **options), Console(quiet=True))
    dataset = Dataset(DataConfig(tmp_path / "data"))
    gone = dataset.raw_ids("users", np.array([0]))[0].as_py()
    truth = pq.ParquetFile(tmp_path / "data" / "truth_users.parquet").read()["user"].to_pylist()
    forget(tmp_path / "data", str(gone))
    left = pq.ParquetFile(tmp_path / "data" / "truth_users.1.parquet").read()["user"].to_pylist()
    assert left == [user for user in truth if user != 0]
    assert len(left) < len(truth)
    assert not (tmp_path / "data" / "truth_users.parquet").exists()


def test_what_cannot_be_forgotten(data: Path, tmp_path: Path) -> None:
    before = contents(data)
    with pytest.raises(ValueError, match=r"forget_users: .* holds no list"):
        prepare(PrepareConfig(append=data, forget_users=tmp_path / "missing"), Console(quiet=True))
    with pytest.raises(ValueError, match=r"run_dir.*none without forget_users"):
        PrepareConfig(append=data, run_dir=tmp_path)
    with pytest.raises(ValueError, match=r"forget_users.*none without append"):
        PrepareConfig(source="csv", output=tmp_path / "new", forget_users=tmp_path / "users.txt")
    assert contents(data) == before


def test_command(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone.csv").write_text("user,reason\nalice,asked for it\n")
    arguments = ["--append", data, "--forget_users", tmp_path / "gone.csv", "--retire_before", 1]
    monkeypatch.setattr(sys, "argv", ["prepare.py", *map(str, arguments)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main() == 0
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.splitlines() == [
        "forgot 1 user: 6 rows (span 0: 2, span 1: 2, span 2: 2), 0 waiting rows, 2 rejected rows",
        "what was published before, and runs that are not named with --run_dir, may still hold these users",
        "retired 6 rows before span 1",
        f"written to {data}",
    ]


def forget_alice(data: Path) -> None:
    forget(data, "alice", "carol")


def test_killed_anywhere_the_same_command_ends_it(data: Path, tmp_path: Path) -> None:
    before = rows_of(Dataset(DataConfig(data)))
    done = shutil.copytree(data, tmp_path / "done")
    forget_alice(done)
    after = rows_of(Dataset(DataConfig(done)))
    point, seen = 0, list[bool]()
    while killed_at(point, (folder := shutil.copytree(data, tmp_path / str(point))), forget_alice, folder):
        rows = rows_of(Dataset(DataConfig(folder, verify=True)))
        assert rows in (before, after)
        seen.append(rows == after)
        forget_alice(folder)
        assert contents(folder) == contents(done)
        shutil.rmtree(folder)
        point += 1
    assert seen == sorted(seen)
    assert set(seen) == {False, True}
