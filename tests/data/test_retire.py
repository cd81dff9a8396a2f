"""Retired spans lose their rows and nothing else."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.prepare import PrepareConfig, prepare
from tests.kills import contents, killed_at

DAY = 86_400
START = 1_600_041_600  # a midnight in UTC
Row = tuple[str, str, int]  # user, item, day


def write_log(path: Path, rows: Sequence[Row]) -> Path:
    lines = [f"{user},{item},{START + day * DAY + place}\n" for place, (user, item, day) in enumerate(rows)]
    path.write_text("user,item,time\n" + "".join(lines))
    return path


def change(data: Path, **keys: Any) -> Dataset:
    prepare(PrepareConfig(append=data, threads=1, **keys), Console(quiet=True))
    return Dataset(DataConfig(data, verify=True))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four days; user a meets x on the first, y on the first two, z on all."""
    rows = [
        ("a", "x", 0),
        ("a", "y", 0),
        ("a", "z", 0),
        ("b", "w", 0),
        ("a", "y", 1),
        *(("a", "z", day) for day in (1, 2, 3)),
    ]
    output = tmp_path / "data"
    keys = {"min_interactions": 1, "buckets": 2, "threads": 1, "span_every": "1d", "pretrain_until": START + DAY}
    log = write_log(tmp_path / "log.csv", rows)
    prepare(PrepareConfig(source="csv", input=log, output=output, **keys), Console(quiet=True))
    return output


def retire(data: Path) -> None:
    change(data, retire_before=2)


def test_rows_go_and_all_else_stays(data: Path) -> None:
    before, files = Dataset(DataConfig(data)), contents(data)
    after = change(data, retire_before=2)
    gone = {f"span={span}/bucket=00{bucket}.arrow" for span in (0, 1) for bucket in (0, 1)}
    assert files.keys() - contents(data).keys() == gone
    assert {name: content for name, content in files.items() if name not in gone | {"dataset.json"}} == {
        name: content for name, content in contents(data).items() if name != "dataset.json"
    }
    assert [entry.retired for entry in after.entries] == [True, True, False, False]
    assert after.first_kept == 2
    assert (after.digests, after.users) == (before.digests, before.users)
    assert after.popularity(range(4), 3).tolist() == before.popularity(range(4), 3).tolist() == [1, 2, 4, 1]
    assert after.sequences(2, 0).users.tolist() == before.sequences(2, 0).users.tolist()
    with pytest.raises(ValueError, match="span 1 were retired"):
        after.sequences(1, 0)


def test_retiring_again_changes_nothing(data: Path) -> None:
    change(data, retire_before=3)
    files = contents(data)
    change(data, retire_before=3)
    assert change(data, retire_before=1).first_kept == 3
    assert contents(data) == files


@pytest.mark.parametrize("span", [-1, 0, 4])
def test_other_spans_are_refused(data: Path, span: int) -> None:
    with pytest.raises(ValueError, match=r"retire_before.*from 1 to 3"):
        PrepareConfig(append=data, retire_before=span)


def test_only_prepared_data_can_be_retired(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"retire_before.*none without append"):
        PrepareConfig(source="csv", output=tmp_path / "new", retire_before=1)


def test_later_logs_look_back_to_the_first_kept_span(data: Path, tmp_path: Path) -> None:
    rows = [("a", item, 4) for item in ("x", "y", "z")]
    kept = shutil.copytree(data, tmp_path / "kept")
    change(data, retire_before=1)
    for folder, met, since in ((kept, [True, True, True], 0), (data, [False, True, True], 1)):
        after = change(folder, input=write_log(tmp_path / f"{folder.name}.csv", rows), max_bad_fraction=0.0)
        assert after.entries[4].met_since == since
        own = next(part for bucket in (0, 1) if len((part := after.sequences(4, bucket)).users))
        assert own.met_before.tolist() == met


def test_a_log_is_appended_before_spans_retire(data: Path, tmp_path: Path) -> None:
    log = write_log(tmp_path / "next.csv", [("a", "y", 4), ("c", "z", 4)])
    after = change(data, input=log, retire_before=4)
    assert [entry.retired for entry in after.entries] == [True, True, True, True, False]
    met = np.concatenate([after.sequences(4, bucket).met_before for bucket in (0, 1)])
    assert sorted(met.tolist()) == [False, True]  # y was met before its span retired


def test_killed_anywhere_the_same_command_ends_it(data: Path, tmp_path: Path) -> None:
    done = shutil.copytree(data, tmp_path / "done")
    retire(done)
    point = 0
    while killed_at(point, (folder := shutil.copytree(data, tmp_path / str(point))), retire, folder):
        assert Dataset(DataConfig(folder)).first_kept in (0, 2)
        retire(folder)
        assert contents(folder) == contents(done)
        point += 1
    assert point > 5  # the manifest is written and renamed, and four files are removed
