"""Refreshes whose steps run on ranks that are connected already; the processes themselves: test_command.py."""

import json
import os
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dist_imsr.benchmarks.ranks import LocalRanks
from dist_imsr.data.prepare import prepare
from dist_imsr.evaluation.finished import FinishedRun
from dist_imsr.evaluation.index import export
from dist_imsr.evaluation.recommend import recommend
from dist_imsr.files import locked
from dist_imsr.refresh import refresh as module
from dist_imsr.refresh import steps
from dist_imsr.refresh.config import PublishConfig, QualityConfig
from dist_imsr.refresh.refresh import LOCK, refresh
from dist_imsr.refresh.steps import Steps
from tests.refresh.daily import config_in, prepare_days, published, write_days
from tests.runs import run

POINTS = [(os, "replace"), (os, "rename"), (os, "symlink"), (os, "mkdir")]


class Killed(BaseException):
    """The refresh ends here."""


def _recommend(topology, config):
    finished = FinishedRun(config.run_dir)
    recommend(config, finished, finished.spans[-1], None, topology)


def _export(topology, config):
    finished = FinishedRun(config.run_dir)
    export(config, finished, finished.spans[-1], topology)


@pytest.fixture(scope="module")
def worlds():
    with LocalRanks(1, seconds=120) as one, LocalRanks(2, seconds=120) as two:
        yield {1: one, 2: two}


@pytest.fixture
def taken(worlds, monkeypatch):
    """Replaces the processes of steps; returns the names of the steps that were taken."""
    names = []

    def take(self, name, command, config, ranks=1):
        names.append(name)
        if command is steps.prepare:
            prepare(config, Console(quiet=True))
        else:
            worlds[ranks].call({steps.train: run, steps.recommend: _recommend, steps.export: _export}[command], config)
        self.seconds[name] = 1.0

    monkeypatch.setattr(Steps, "run", take)
    return names


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    return write_days(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def three_days(days, tmp_path_factory):
    """Prepared data of the first three days."""
    return prepare_days(days[:3], tmp_path_factory.mktemp("prepared") / "data")


@pytest.fixture
def first(three_days, tmp_path):
    shutil.copytree(three_days, tmp_path / "data")
    return config_in(tmp_path)


def _refresh(config, capsys):
    """Returns the exit status and the line of JSON, the only one on standard output."""
    status = refresh(config)
    (line,) = capsys.readouterr().out.splitlines()
    return status, json.loads(line)


def test_day_by_day_ends_as_all_days_at_once(days, first, taken, tmp_path, capsys):
    status, line = _refresh(first, capsys)
    assert (status, line["outcome"], line["reason"], line["append"]) == (0, "published", None, None)
    assert line["quality"] | {"value": 0} == {
        "metric": "hr@5", "span": 2, "value": 0, "mean": None, "spans": 0, "min_ratio": 0.0, "ratio": None
    }  # fmt: skip
    assert taken == ["train", "recommend", "export"]
    for span in (3, 4):
        taken.clear()
        status, line = _refresh(replace(first, input=days[span]), capsys)
        assert (status, line["outcome"]) == (0, "published")
        assert taken == [*line["seconds"]] == ["append", "train", "recommend", "export"]
        assert line["append"]["spans"] == [span, span]
        assert line["append"]["rows_read"] == line["append"]["interactions"] == len(days[span].read_text().split()) - 1
        assert (line["quality"]["span"], line["quality"]["spans"]) == (span, span - 2)
        assert line["published"]["span"] == span
        assert line["published"]["folder"] == os.path.realpath(first.published / "current")
    taken.clear()
    again = _refresh(replace(first, input=days[2:]), capsys)  # a pattern may name what is in the data
    assert again[1] | {"append": None} == line | {"append": None, "outcome": "unchanged", "seconds": {}}
    assert taken == []
    assert len([*first.published.iterdir()]) == 3  # the last two, and the link

    (tmp_path / "whole").mkdir()
    prepare_days(days, tmp_path / "whole" / "data")
    _refresh(config_in(tmp_path / "whole"), capsys)
    assert published(tmp_path) == published(tmp_path / "whole")
    table = pq.read_table(first.published / "current" / "recommendations.parquet")
    assert set(table["user"].to_pylist()) <= {f"u{user}" for user in range(60)}
    assert json.loads((first.published / "current" / "export" / "export.json").read_text())["span"] == 4


def test_killed_anywhere_the_same_command_ends_with_the_same_files(days, first, taken, tmp_path, monkeypatch, capsys):
    refresh(first)
    before = shutil.copytree(tmp_path / "run", tmp_path / "before", symlinks=True)
    data = shutil.copytree(tmp_path / "data", tmp_path / "data-before")
    old, passed, kill = published(tmp_path), 0, None

    def counted(original):
        def call(*args, **kwargs):
            nonlocal passed
            passed += 1
            if passed == kill:
                raise Killed
            result = original(*args, **kwargs)
            if original is take:  # right after a step as well
                passed += 1
                if passed == kill:
                    raise Killed
            return result

        return call

    take = Steps.run
    for owner, name in [*POINTS, (Steps, "run")]:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))

    def refresh_on(place):
        nonlocal passed
        passed = 0
        config = config_in(place, input=days[3])
        return refresh(config)

    assert refresh_on(tmp_path) == 0
    points, new = passed, published(tmp_path)
    assert old != new
    assert points > 12
    for kill in range(1, points + 1):
        place = tmp_path / f"killed-{kill}"
        kill, killed = None, kill
        shutil.copytree(before, place / "run", symlinks=True)
        shutil.copytree(data, place / "data")
        kill = killed
        with pytest.raises(Killed):
            refresh_on(place)
        assert published(place) in (old, new), killed
        kill = None
        assert refresh_on(place) == 0
        assert published(place) == new, killed
        left = {path.name for path in (place / "run" / "published").iterdir()}
        assert left == {path.name for path in (tmp_path / "run" / "published").iterdir()}
        shutil.rmtree(place)
    capsys.readouterr()


def test_a_bad_model_is_trained_but_not_published(days, first, taken, capsys):
    _refresh(first, capsys)
    before = published(first.run_dir.parent)
    judged = replace(first, input=days[3], refresh=QualityConfig("hr@5", min_ratio=100.0))
    for seconds in (["append", "train"], []):
        status, line = _refresh(judged, capsys)
        assert (status, line["status"], line["outcome"]) == (3, 3, "held")
        assert line["reason"].startswith("not published: hr@5 of span 3 is ")
        assert line["reason"].endswith("less than refresh.min_ratio 100")
        assert [*line["seconds"]] == seconds
        assert line["published"]["span"] == 2
        assert published(first.run_dir.parent) == before
    status, line = _refresh(replace(first, input=days[3]), capsys)
    assert (status, line["published"]["span"], [*line["seconds"]]) == (0, 3, ["recommend", "export"])


def test_nothing_is_published_without_a_section(days, first, taken, capsys):
    config = replace(first, input=days[3], publish=PublishConfig())
    status, line = _refresh(config, capsys)
    assert (status, line["outcome"], line["published"]) == (0, "trained", None)
    assert not (first.run_dir / "published").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ["--overwrite=true"]}, "train: overwrite: True is impossible here; expected false"),
        ({"train": ["--resume=never"]}, "train: resume: 'never'"),
        ({"train": ["--checkpoint.enabled=false"]}, "train: checkpoint.enabled: False"),
        ({"train": ["--training.spans=2"]}, "train: training.spans: 2"),
        ({"train": ["--training.export=none"]}, "train: training.export: 'none'"),
        ({"train": ["--model.dim=0"]}, "train: model.dim: 0"),
        ({"train": ["--modle.dim=8"]}, "train: "),
        ({"append": ["--late=never"]}, "append: "),
        ({"append": ["--source=taobao"]}, "append: source: 'taobao' is not that of"),
        ({"until": "yesterday"}, "append: until: 'yesterday'"),
        ({"publish": PublishConfig(recommend=["--top=0"])}, "publish.recommend: top: 0"),
        ({"publish": PublishConfig(export=["--top=0"])}, "publish.export: top: 0"),
        ({"refresh": QualityConfig("hr@20")}, "refresh.metric: 'hr@20' is impossible here; expected one that train"),
        ({"refresh": QualityConfig("loss")}, "refresh.metric: 'loss'"),
        ({"input": "missing.csv"}, "input: missing.csv does not exist"),
        ({"input": "/dev/null"}, "input: '/dev/null' is impossible here; expected files"),
        ({"data": "nowhere"}, "append: data.path: nowhere holds no dataset.json"),
    ],
)
def test_what_is_impossible_is_refused_in_one_line_before_anything_is_changed(first, taken, changes, message, capsys):
    changes = {key: type(first.data)(value) if key in ("input", "data") else value for key, value in changes.items()}
    if "train" in changes:
        changes["train"] = [*first.train, *changes["train"]]
    status = refresh(replace(first, **changes))
    printed = capsys.readouterr()
    line = json.loads(printed.out)
    assert (status, line["outcome"], line["seconds"]) == (2, "refused", {})
    assert line["reason"].startswith(message)
    assert printed.err == f"refresh: {line['reason']}\n"
    assert taken == []


def test_one_refresh_at_a_time(first, taken, capsys):
    first.run_dir.mkdir()
    with locked(first.run_dir / LOCK, ""):
        status = refresh(first)
    printed = capsys.readouterr()
    assert (status, json.loads(printed.out)["outcome"]) == (2, "refused")
    assert printed.err == f"refresh: run_dir: another refresh of {first.run_dir} is at work; wait for it\n"
    assert taken == []
    assert module.LOG not in {path.name for path in first.run_dir.iterdir()}
