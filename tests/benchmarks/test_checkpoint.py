import json
import math
import os

import pytest

from dist_imsr.benchmarks.checkpoint import drop_cached
from launch.bench import main

TINY = [
    *("--items", "300", "--users", "40", "--buckets", "4", "--batch", "8", "--dim", "8"),
    *("--steps", "2", "--repeats", "2"),
]


def test_figures(tmp_path, capsys, monkeypatch):
    path, scratch = tmp_path / "figures.json", tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.chdir(scratch)
    assert main(["checkpoint", *TINY, "--json", str(path)]) == 0
    figures = {row["figure"]: row for row in json.loads(path.read_text())}
    lost = figures["train_seconds_lost_per_save"]
    assert {name: row["runs"] for name, row in figures.items()} == {
        "checkpoint_bytes": 1,
        **dict.fromkeys(("save_rate_over_plain_write", "load_rate_over_plain_read"), 2),
        **dict.fromkeys(("seconds_a_save", "seconds_a_plain_write", "seconds_a_load", "seconds_a_plain_read"), 2),
        **dict.fromkeys(("train_seconds_lost_per_save", "train_seconds_blocked_per_save"), 2),
    }
    for row in figures.values():
        assert math.isfinite(row["value"])
        assert row["min"] > 0 or row is lost  # which is a difference of two times
    assert figures["checkpoint_bytes"]["value"] > 4 * 8 * (300 + 40 * 4)  # the vectors of items and interests alone
    assert figures["seconds_a_save"]["settings"]["buckets"] == 4
    assert lost["settings"]["steps"] >= 2
    assert len(lost["settings"]["seconds_waited_at_the_end"]) == 2
    assert "save_rate_over_plain_write" in capsys.readouterr().out
    assert not list(scratch.iterdir())


def test_caches_are_dropped_of_files_in_all_folders(tmp_path, monkeypatch):
    dropped = []
    monkeypatch.setattr(os, "posix_fadvise", lambda descriptor, *_: dropped.append(os.read(descriptor, 9)))
    (tmp_path / "inner").mkdir()
    for name in ("one", "inner/other"):
        (tmp_path / name).write_text(name)
    drop_cached(tmp_path)
    assert sorted(dropped) == [b"inner/oth", b"one"]


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--repeats", "0"], "repeats"),
        (["--users", "3"], "users"),
        (["--batch", "7"], "batch"),
        (["--buckets", "3"], "buckets"),
        (["--buckets", "0"], "buckets"),
        (["--folder", "missing/folder"], "folder"),
        (["--json", "missing/figures.json"], "json"),
    ],
)
def test_impossible_options_are_refused_in_one_line(arguments, key, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["checkpoint", *TINY, *arguments])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert errors.count("\n") == 1
    assert key in errors
