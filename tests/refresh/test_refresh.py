"""Refreshes whose steps run on ranks that are connected already; the processes themselves: test_command.py."""

import json
import os
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.prepare import PrepareConfig, prepare
from dist_imsr.evaluation.finished import FinishedRun
from dist_imsr.evaluation.index import export
from dist_imsr.evaluation.recommend import recommend
from dist_imsr.files import locked
from dist_imsr.refresh import refresh as module
from dist_imsr.refresh import steps
from dist_imsr.refresh.config import PublishConfig, QualityConfig
from dist_imsr.refresh.refresh import LOCK, refresh
from dist_imsr.refresh.steps import Steps
from dist_imsr.training.forget import forgetting_in_runs
from tests.ranks import ranks_on
from tests.refresh.daily import config_in, prepare_days, published
from tests.runs import run

PLACES = ("data", "run")
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
    with ranks_on(1) as one, ranks_on(2) as two:
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


@pytest.fixture
def first(three_days, tmp_path):
    shutil.copytree(three_days, tmp_path / "data")
    return config_in(tmp_path)


def _refresh(config, capsys):
    """Returns the exit status and the line of JSON, the only one on standard output."""
    status = refresh(config)
    printed = capsys.readouterr()
    assert status in (0, 3), printed.err
    (line,) = printed.out.splitlines()
    return status, json.loads(line)


def test_day_by_day_ends_as_all_days_at_once(days, first, taken, tmp_path, capsys):
    status, line = _refresh(first, capsys)
    assert (status, line["outcome"], line["reason"], line["append"]) == (0, "published", None, None)
    assert line["quality"] | {"value": 0} == {
        "metric": "hr@20", "span": 2, "value": 0, "mean": None, "spans": 0, "min_ratio": 0.0, "ratio": None
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
    counts = _refresh(replace(first, input=days[0]), capsys)[1]["append"]  # of the first preparation
    dataset = Dataset(DataConfig(first.data))
    assert (counts["spans"], counts["new_users"]) == ([0, 2], sum(dataset.entries[2].users))
    assert counts["new_items"] == dataset.entries[2].items

    (tmp_path / "whole").mkdir()
    prepare_days(days, tmp_path / "whole" / "data")
    _refresh(config_in(tmp_path / "whole"), capsys)
    assert published(tmp_path) == published(tmp_path / "whole")
    table = pq.read_table(first.published / "current" / "recommendations.parquet")
    assert set(table["user"].to_pylist()) <= {f"u{user}" for user in range(60)}
    assert json.loads((first.published / "current" / "export" / "export.json").read_text())["span"] == 4


def _result(command, config):
    """The file or folder that tells that a step is done."""
    if command is steps.train:
        return config.run_dir / "checkpoints"
    return config.append if command is steps.prepare else config.output


def _copy(source, target):
    if source.is_file():
        shutil.copy(source, target)
    else:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)


class Points:
    """Counts what a refresh does between its steps, and the beginnings and ends of these; raises `Killed` at one.

    A step that was taken before, in another place, is not taken again: its files are copied.
    """

    def __init__(self, monkeypatch, copies):
        self.passed, self.kill, self.copies = 0, None, copies
        for owner, name in POINTS:
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))
        monkeypatch.setattr(Steps, "run", self._around(Steps.run))

    def pass_one(self):
        self.passed += 1
        if self.passed == self.kill:
            raise Killed

    def _counted(self, original):
        def call(*args, **kwargs):
            self.pass_one()
            return original(*args, **kwargs)

        return call

    def _around(self, take):
        def call(steps, name, command, config, ranks=1):
            self.pass_one()
            passed, kill, self.kill = self.passed, self.kill, None  # steps have their own tests
            copy, path = self.copies / name, _result(command, config)
            if copy.exists():
                _copy(copy, path)
                steps.seconds[name] = 1.0
            else:
                take(steps, name, command, config, ranks)
                _copy(path, copy)
            self.passed, self.kill = passed, kill
            self.pass_one()

        return call

    def at(self, kill):
        self.passed, self.kill = 0, kill


def test_killed_anywhere_the_same_command_ends_with_the_same_files(days, first, taken, tmp_path, monkeypatch, capsys):
    assert refresh(first) == 0
    before = {name: shutil.copytree(tmp_path / name, tmp_path / f"{name}-before", symlinks=True) for name in PLACES}
    (tmp_path / "copies").mkdir()
    old, points = published(tmp_path), Points(monkeypatch, tmp_path / "copies")
    assert refresh(replace(first, input=days[3])) == 0
    count, new, names = points.passed, published(tmp_path), {path.name for path in first.published.iterdir()}
    assert count > 15
    assert old != new
    for kill in range(1, count + 1):
        points.at(None)
        place = tmp_path / f"killed-{kill}"
        for name, copy in before.items():
            shutil.copytree(copy, place / name, symlinks=True)
        config = config_in(place, input=days[3])
        points.at(kill)
        with pytest.raises(Killed):
            refresh(config)
        assert published(place) in (old, new), kill
        points.at(None)
        assert refresh(config) == 0
        assert published(place) == new, kill
        assert {path.name for path in config.published.iterdir()} == names, kill
        shutil.rmtree(place)
    capsys.readouterr()


def test_a_bad_model_is_trained_but_not_published(days, first, taken, capsys):
    _refresh(first, capsys)
    before = published(first.run_dir.parent)
    judged = replace(first, input=days[3], refresh=QualityConfig("hr@20", min_ratio=100.0))
    for seconds in (["append", "train"], []):
        status, line = _refresh(judged, capsys)
        assert (status, line["status"], line["outcome"]) == (3, 3, "held")
        assert line["reason"].startswith("not published: hr@20 of span 3 is ")
        assert line["reason"].endswith("less than refresh.min_ratio 100")
        assert [*line["seconds"]] == seconds
        assert line["published"]["span"] == 2
        assert published(first.run_dir.parent) == before
    status, line = _refresh(replace(first, input=days[3]), capsys)
    assert (status, line["published"]["span"], [*line["seconds"]]) == (0, 3, ["recommend", "export"])


def test_only_users_who_changed_after_the_publication_before(days, first, taken, capsys):
    config = replace(first, publish=PublishConfig(recommend=["--top=5"], only_changed=True))
    users = []
    for span, since in ((2, None), (3, 2)):
        _, line = _refresh(replace(config, input=days[span]), capsys)
        assert (line["published"]["span"], line["published"]["since"]) == (span, since)
        recommendations = pq.read_table(config.published / "current" / "recommendations.parquet")
        users.append(set(recommendations["user"].to_pylist()))
    assert users[1] == {row.split(",")[0] for row in days[3].read_text().splitlines()[1:]}
    assert not users[0] <= users[1]


def test_rows_of_old_spans_are_retired_once_they_are_trained(days, first, taken, capsys):
    config = replace(first, publish=PublishConfig(recommend=["--top=5"]), keep_spans=2)
    for span in (2, 3):
        taken.clear()
        _, line = _refresh(replace(config, input=days[: span + 1]), capsys)
        assert [*line["seconds"]][-1] == "retire"
        dataset = Dataset(DataConfig(config.data))
        assert (dataset.spans, dataset.first_kept) == (span + 1, span - 1)
        assert not [*config.data.glob(f"span={span - 2}/bucket=*")]
        assert [*config.data.glob(f"span={span - 1}/bucket=*")]
    assert _refresh(config, capsys)[1]["outcome"] == "unchanged"
    judged = replace(config, input=days[4], refresh=QualityConfig("hr@20", min_ratio=100.0))
    assert _refresh(judged, capsys)[0] == 3
    assert Dataset(DataConfig(config.data)).first_kept == 3  # it is trained, though not published


def test_forgotten_users_leave_what_is_published(first, taken, tmp_path, capsys):
    config = replace(first, publish=PublishConfig(recommend=["--top=5"], keep=1))
    _refresh(config, capsys)
    old = (config.published / "current").resolve()
    recommendations = pq.read_table(old / "recommendations.parquet").to_pylist()
    forgotten = recommendations[0]["user"]
    (tmp_path / "users.txt").write_text(f"{forgotten}\n")
    request = PrepareConfig(append=config.data, forget_users=tmp_path / "users.txt", run_dir=config.run_dir)
    with forgetting_in_runs(request, Console(quiet=True)):
        prepare(request, Console(quiet=True))
    taken.clear()
    assert _refresh(config, capsys)[0] == 0
    assert taken == ["recommend"]
    left = pq.read_table(config.published / "current" / "recommendations.parquet").to_pylist()
    assert left == [row for row in recommendations if row["user"] != forgotten]
    assert not old.exists()


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
        ({"publish": PublishConfig(recommend=["--since=1"])}, "publish.recommend: since: 1"),
        ({"publish": PublishConfig(export=["--top=0"])}, "publish.export: top: 0"),
        ({"publish": PublishConfig(export=["--span=1"])}, "publish.export: span: 1"),
        ({"refresh": QualityConfig("hr@50")}, "refresh.metric: 'hr@50' is impossible here; expected one that train"),
        ({"refresh": QualityConfig("loss")}, "refresh.metric: 'loss'"),
        ({"input": "missing.csv"}, "input: missing.csv does not exist"),
        ({"input": "/dev/null"}, "input: '/dev/null' is impossible here; expected files"),
        ({"data": "nowhere"}, "data: nowhere holds no dataset.json"),
    ],
)
def test_what_is_impossible_is_refused_in_one_line_before_anything_is_changed(
    days, first, taken, changes, message, capsys
):
    changes = {key: type(first.data)(value) if key in ("input", "data") else value for key, value in changes.items()}
    if "train" in changes:
        changes["train"] = [*first.train, *changes["train"]]
    status = refresh(replace(first, **{"input": days[3]} | changes))
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
