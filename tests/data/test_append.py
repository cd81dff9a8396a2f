"""Appending a log in pieces gives the files of preparing it in one go; what is refused or killed changes nothing."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.prepare import PrepareConfig, prepare

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
    cuts = draw(st.sets(st.integers(2, days - 1), min_size=1, max_size=6))
    return list(rows), sorted(cuts)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
