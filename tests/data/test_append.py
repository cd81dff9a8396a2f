"""Appending a log in pieces gives the files of preparing it in one go; what is refused or killed changes nothing."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
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
from dist_imsr.data.prepare import PrepareConfig, changing, prepare
from dist_imsr.files import locked
from tests.kills import killed_at

REPOSITORY = Path(__file__).parents[2]
DAY = 86_400
START = 1_600_041_600  # a midnight in UTC
Row = tuple[str, str, int]  # user, item, time


def quietly(config: PrepareConfig) -> dict[str, Any]:
    return prepare(config, Console(quiet=True))


def write_log(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("user,item,time\n" + "".join(f"{user},{item},{time}\n" for user, item, time in rows))
    return path


def first(log: Path, output: Path, **changes: Any) -> dict[str, Any]:
    options = {"min_interactions": 1, "buckets": 3, "threads": 1, "span_every": "1d", "pretrain_until": START + DAY}
    return quietly(PrepareConfig(source="csv", input=log, output=output, **options | changes))


def append(log: Path, data: Path, **changes: Any) -> dict[str, Any]:
    return quietly(PrepareConfig(append=data, input=log, threads=1, **changes))


def contents(data: Path) -> dict[str, bytes]:
    """Every file of a data set, but for what tells of its preparations."""
    files = {str(path.relative_to(data)): path.read_bytes() for path in data.rglob("*") if path.is_file()}
    return {
        name: content
        for name, content in files.items()
        if name.split("/")[0] not in ("rejected", "dataset.json", ".lock")
    }


def spans_of(data: Path) -> list[dict[str, Any]]:
    return json.loads((data / "dataset.json").read_text())["spans"]


def log_of(draw: st.DrawFn, days: int) -> list[Row]:
    """Interactions of each day in any order; the last one has some, and the first one has three of a user."""
    times = st.integers(0, DAY - 1)
    rows = [("a", item, START + draw(times)) for item in "uvw"]
    for day in range(days):
        least = 1 if day == days - 1 else 0
        of_day = draw(
            st.lists(
                st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("uvwxyz"), times), min_size=least, max_size=12
            )
        )
        rows += [(user, item, START + day * DAY + time) for user, item, time in of_day]
    return rows


@st.composite
def logs_and_cuts(draw: st.DrawFn) -> tuple[list[Row], list[int]]:
    """A log of up to 7 days in a random order, and the days at which it is cut into pieces."""
    days = draw(st.integers(3, 7))
    rows = draw(st.permutations(log_of(draw, days)))
    cuts = draw(st.sets(st.integers(1, days - 1), min_size=1, max_size=6))
    return list(rows), sorted(cuts)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(example=logs_and_cuts(), least=st.sampled_from([1, 1, 3]))
def test_append_equals_whole(
    tmp_path_factory: pytest.TempPathFactory, example: tuple[list[Row], list[int]], least: int
) -> None:
    rows, cuts = example
    folder = tmp_path_factory.mktemp("cut")
    options = {"min_interactions": least, "count_users": "so_far"}
    bounds = [-(10**9), *(START + cut * DAY for cut in cuts), 10**12]
    pieces = [[row for row in rows if begin <= row[2] < end] for begin, end in itertools.pairwise(bounds)]
    first(write_log(folder / "whole.csv", rows), folder / "whole", **options)
    first(write_log(folder / "0.csv", pieces[0]), folder / "data", **options)
    for number, piece in enumerate(pieces[1:], 1):
        if piece:
            append(write_log(folder / f"{number}.csv", piece), folder / "data", max_bad_fraction=0.0)
    assert contents(folder / "data") == contents(folder / "whole")
    assert spans_of(folder / "data") == spans_of(folder / "whole")
    Dataset(DataConfig(folder / "data", verify=True))


WEEK = [
    (user, item, START + day * DAY + hour * 3600)
    for day in range(3)
    for hour, (user, item) in enumerate(["au", "av", "bu", "cw"])
]
NEXT = [(user, item, START + 3 * DAY + hour * 3600) for hour, (user, item) in enumerate(["ax", "du", "av", "bu"])]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three days, prepared: the first one is the pre-training span."""
    first(write_log(tmp_path / "week.csv", WEEK), tmp_path / "data")
    return tmp_path / "data"


def refused(data: Path, message: str, **changes: Any) -> None:
    """An append fails with an error and changes nothing."""
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(ValueError, match=message):
        quietly(PrepareConfig(append=data, threads=1, **changes))
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file() and path.name != ".lock"} == before
    assert not [path for path in data.rglob("*") if path.is_dir() and not any(path.iterdir())]


def test_an_append_of_several_days_adds_several_spans(data: Path, tmp_path: Path) -> None:
    rows = [*NEXT, ("e", "y", START + 5 * DAY)]
    manifest = append(write_log(tmp_path / "days.csv", rows), data)
    record = manifest["preparations"][-1]
    assert (record["spans"], record["rows_read"], record["rejected"]) == ([3, 5], 5, {})
    assert [entry["interactions"] for entry in manifest["spans"]] == [4, 4, 4, 4, 0, 1]
    assert [entry["first_second"] for entry in manifest["spans"][3:]] == [START + day * DAY for day in (3, 4, 5)]
    dataset = Dataset(DataConfig(data, verify=True))
    assert dataset.raw_ids("users", dataset.user_ids(pa.array(["d", "e"]))).to_pylist() == ["d", "e"]


def test_a_day_is_a_day_of_its_time_zone(tmp_path: Path) -> None:
    log = write_log(
        tmp_path / "log.csv", [("a", "x", START), ("a", "y", START + 16 * 3600), ("a", "z", START + 40 * 3600)]
    )
    manifest = first(log, tmp_path / "data", time_zone="Asia/Shanghai", pretrain_until="2020-09-15")
    assert [entry["first_second"] - START for entry in manifest["spans"]] == [0, 16 * 3600, 40 * 3600]
    assert manifest["spans"][-1]["end_second"] - START == 64 * 3600


def test_the_same_file_twice(data: Path, tmp_path: Path) -> None:
    log = write_log(tmp_path / "next.csv", NEXT)
    append(log, data)
    log.rename(tmp_path / "renamed.csv")
    refused(data, r"renamed.csv was added already, as span 3", input=tmp_path / "renamed.csv")
    refused(data, r"week.csv was added already, as spans 0 to 2", input=tmp_path / "week.csv")
    # In another period, too, as no row of it was left out.
    refused(data, r"renamed.csv was added already", input=tmp_path / "renamed.csv", until=START + 9 * DAY)


def test_the_same_rows_under_two_names(data: Path, tmp_path: Path) -> None:
    logs = [write_log(tmp_path / name, NEXT) for name in ("next.csv", "copy.csv")]
    refused(data, r"copy.csv holds the same rows as .*next.csv: leave it out", input=logs)
    empty = [write_log(tmp_path / name, []) for name in ("none.csv", "nothing.csv")]  # parts of Spark may be
    assert quietly(PrepareConfig(append=data, input=[*empty, logs[0]], threads=1))["preparations"][-1]["rows_read"] == 4


def test_a_file_whose_rows_were_left_out_is_read_again_in_another_period(data: Path, tmp_path: Path) -> None:
    log = write_log(tmp_path / "next.csv", [*NEXT, ("e", "y", START + 4 * DAY)])
    append(log, data, until=START + 4 * DAY)
    assert append(log, data, from_=START + 4 * DAY)["preparations"][-1]["left_out"] == {"before from": 4}


def test_a_file_that_overlaps(data: Path, tmp_path: Path) -> None:
    log = write_log(tmp_path / "both.csv", [*WEEK[-2:], *NEXT])
    refused(data, r"2 of 6 rows are bad.*2 late;.*--late into_next", input=log)
    refused(data, r"2 of 6 rows are bad.*2 already in the data", input=log, late="into_next")
    record = append(log, data, max_bad_fraction=0.5)["preparations"][-1]
    assert record["rejected"] == {"late": 2}


def test_rows_before_from_are_left_out_and_not_late(data: Path, tmp_path: Path) -> None:
    log = write_log(tmp_path / "both.csv", [*WEEK[-2:], *NEXT])
    record = append(log, data, from_=START + 3 * DAY)["preparations"][-1]
    assert (record["rejected"], record["left_out"]) == ({}, {"before from": 2})


def test_late_rows_alone_close_no_span(data: Path, tmp_path: Path) -> None:
    log = write_log(tmp_path / "late.csv", [("b", "z", START + DAY + 5)])
    refused(data, r"late: all rows of .*late.csv are from before 2020-09-17T00:00:00Z", input=log, late="into_next")


def test_late_rows_enter_the_next_span(data: Path, tmp_path: Path) -> None:
    late = ("b", "z", START + DAY + 5)
    append(write_log(tmp_path / "next.csv", [*NEXT, late]), data, late="into_next")
    dataset = Dataset(DataConfig(data))
    [user] = dataset.user_ids(pa.array(["b"]))
    sequences = dataset.sequences(3, user % 3)
    [place] = np.flatnonzero(sequences.users == user)
    assert sequences.times[slice(*sequences.offsets[place : place + 2])].tolist() == [
        late[2],
        START + 3 * DAY + 3 * 3600,
    ]


def test_users_wait_for_enough_rows(tmp_path: Path) -> None:
    first(write_log(tmp_path / "week.csv", WEEK), tmp_path / "data", min_interactions=4)
    data = tmp_path / "data"
    dataset = Dataset(DataConfig(data))
    assert dataset.user_ids(pa.array(["a", "b", "c"])).tolist().count(-1) == 2
    append(write_log(tmp_path / "next.csv", NEXT), data)
    dataset = Dataset(DataConfig(data))
    assert dataset.entries[3].interactions == 2 + 4  # two of a, and the four of b
    waiting = pq.read_table(data / dataset.waiting_files[0]).to_pylist()
    assert [row["user"] for row in waiting] == ["c", "c", "c", "d"]
    assert [path.name for path in (data / "waiting").iterdir()] == ["span=3.parquet"]


def test_other_columns_ids_and_options(data: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("who,what,time\na,x,1600300800\n")
    refused(data, "user", input=tmp_path / "other.csv")
    table = pa.table({"user": [1], "item": [2], "time": [START + 3 * DAY]})
    pq.write_table(table, tmp_path / "log.parquet")
    refused(data, "other.parquet|no text|Parquet|csv", input=tmp_path / "log.parquet")
    for key, value in (("source", "taobao"), ("min_interactions", 5), ("buckets", 7), ("span_every", "7d")):
        with pytest.raises(ValueError, match=rf"{key}: .*is not that of .*data.*leave it out"):
            PrepareConfig(append=data, input=tmp_path / "log.parquet", **{key: value})
    same = PrepareConfig(append=data, input=tmp_path / "log.parquet", source="csv", buckets=3)
    assert same.min_interactions == 1


def test_ids_of_another_type(tmp_path: Path) -> None:
    numbers = pa.table({"user": [1, 1], "item": [2, 3], "time": [START, START + DAY]})
    pq.write_table(numbers, tmp_path / "a.parquet")
    texts = pa.table({"user": ["1"], "item": [2], "time": [START + 2 * DAY]})
    pq.write_table(texts, tmp_path / "b.parquet")
    config = {"min_interactions": 1, "span_every": "1d", "pretrain_until": START + DAY}
    quietly(PrepareConfig(source="parquet", input=tmp_path / "a.parquet", output=tmp_path / "data", **config))
    refused(
        tmp_path / "data", r"columns.user: .*b.parquet has VARCHAR, and .*data has BIGINT", input=tmp_path / "b.parquet"
    )


@pytest.mark.parametrize("options", [{"drop_repeats": "all"}, {"min_users_per_item": 2}])
def test_options_that_need_the_whole_log(tmp_path: Path, options: dict[str, Any]) -> None:
    first(write_log(tmp_path / "week.csv", WEEK), tmp_path / "data", **options)
    with pytest.raises(ValueError, match=rf"{next(iter(options))}: .*nothing can be appended"):
        PrepareConfig(append=tmp_path / "data", input=tmp_path / "week.csv")


def test_a_row_with_a_wrong_clock_closes_no_span(data: Path, tmp_path: Path) -> None:
    rows = [*(("a", "x", START + 3 * DAY + second) for second in range(200)), ("b", "x", START + 9 * DAY)]
    log = write_log(tmp_path / "next.csv", rows)
    refused(data, r"1 of 201 rows are at or after 2020-09-18T00:00:00Z.*--until", input=log)
    assert append(log, data, until="2020-09-18")["preparations"][-1]["left_out"] == {"until and later": 1}


def test_two_appends_at_once(data: Path, tmp_path: Path) -> None:
    log = write_log(tmp_path / "next.csv", NEXT)
    with locked(data / ".lock", ""):
        refused(data, r"append: another process is changing .*data; wait for it", input=log)
        with pytest.raises(ValueError, match=r"output: another process is changing .*data; wait for it"):
            first(log, data, overwrite=True)
    append(log, data)


def test_spans_by_shares_are_continued_in_their_length(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", [("a", "x", START + hour * 3600) for hour in range(0, 97, 2)])
    data = tmp_path / "data"
    quietly(PrepareConfig(source="csv", input=log, output=data, min_interactions=1, alpha=0.5, spans=2))
    rows = [("a", "x", START + hour * 3600) for hour in range(98, 144, 2)]
    manifest = append(write_log(tmp_path / "next.csv", rows), data)
    assert manifest["preparations"][-1]["spans"] == [3, 4]
    assert manifest["spans"][3]["first_second"] == START + 96 * 3600 + 1
    edges = [manifest["spans"][-1]["end_second"] + 3600]
    further = [("a", "x", manifest["spans"][-1]["end_second"] + 60)]
    manifest = append(write_log(tmp_path / "more.csv", further), data, span_edges=[str(edges[0])])
    assert manifest["spans"][-1]["end_second"] == edges[0]


def test_killed_anywhere(tmp_path: Path) -> None:
    script = f"from tests.data.test_append import kill_everywhere; kill_everywhere({str(tmp_path)!r})"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 12


def kill_everywhere(folder: str) -> None:
    """Kills an append at each of its points, and starts it again; prints the number of points."""
    tmp_path = Path(folder)
    log, data = write_log(tmp_path / "next.csv", NEXT), tmp_path / "data"
    week = write_log(tmp_path / "week.csv", WEEK)
    options = {"min_interactions": 2, "count_users": "so_far", "buckets": 2}
    assert not killed_at(10**9, tmp_path, lambda: first(week, data, **options))
    shutil.copytree(data, tmp_path / "whole")
    assert not killed_at(10**9, tmp_path, append, log, tmp_path / "whole")
    before, after = contents(data), contents(tmp_path / "whole")
    for point in itertools.count():
        one = tmp_path / f"at-{point}"
        shutil.copytree(data, one)
        killed = killed_at(point, one, append, log, one)
        dataset = Dataset(DataConfig(one, verify=True))
        named = {name: (one / name).read_bytes() for entry in dataset.entries for name in dataset.files_of(entry)}
        assert all((before if dataset.spans == 3 else after)[name] == content for name, content in named.items())
        if dataset.spans == 3:
            assert not killed_at(10**9, one, append, log, one)
        else:  # committed: the next command that writes removes what is left
            killed_at(10**9, one, _clean, one)
        assert contents(one) == after
        shutil.rmtree(one)
        if not killed:
            print(point)
            return


def _clean(data: Path) -> None:
    with changing(DataConfig(data), data):
        pass
