"""Runs that go on when their data grow: trained in between, they end as runs that had all spans from the beginning."""

import functools
import json
import os
import shutil
from dataclasses import replace

import pytest

from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.mimn import MIMNConfig
from dist_imsr.strategies import TrainingConfig
from dist_imsr.training.checkpoint import CheckpointConfig, name_before_test, name_of, newest_first
from dist_imsr.training.run import check
from tests.commands import start_ranks
from tests.faults import run_counted, run_killed_once
from tests.prepared import drawn_history, write_dataset
from tests.ranks import ranks_on
from tests.runs import run, timeless
from tests.training.test_checkpoint import GROWING, _config

HISTORY = drawn_history(users=60, items=80, spans=5, longest=12)
STAGES = {"tested": (2, 4, 5), "newest": (1, 3, 5)}
"""The numbers of spans that the data have when the command is started."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), HISTORY)


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    """The configuration of an uninterrupted run and what it leaves, by `until` and number of ranks; trained once."""

    @functools.cache
    def trained(until, world_size=2):
        whole = _until(until, folder, tmp_path_factory.mktemp("whole") / "run")
        with ranks_on(world_size) as ranks:
            return whole, ranks.call(run, whole)

    return trained


def _until(until, folder, run_dir, export="last", **changes):
    training = TrainingConfig(epochs=2, incremental_epochs=2, patience=1, until=until, export=export)
    return _config(folder, run_dir, training=training, **changes)


def _append(folder, spans):
    folder.mkdir(exist_ok=True)
    return write_dataset(folder, HISTORY, spans=spans)


def _last_checkpoint(run_dir):
    """The checksums of its files, and the digests of the spans that it has read."""
    manifest = json.loads((newest_first(run_dir / "checkpoints")[0] / "manifest.json").read_text())
    return manifest["files"], manifest["span_digests"]


def _lines(run_dir):
    return timeless([json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()])


def _exported(run_dir):
    return {path.relative_to(run_dir): path.read_bytes() for path in sorted(run_dir.glob("spans/*/*"))}


def _trained_in_between(ranks, stages, config, wanted, whole):
    """Trains at each stage of the data, and compares the end with that of the whole run."""
    for spans in stages:
        _append(config.data.path, spans)
        found = ranks.call(run, config)
    assert found == wanted
    _ends_as(config.run_dir, whole.run_dir)


def _ends_as(run_dir, whole):
    assert _lines(run_dir) == _lines(whole)
    assert _last_checkpoint(run_dir) == _last_checkpoint(whole)
    assert _exported(run_dir) == _exported(whole)


def test_spans_do_not_depend_on_later_ones(folder, tmp_path):
    part = Dataset(DataConfig(_append(tmp_path / "part", 3)))
    assert part.digests == Dataset(DataConfig(folder)).digests[:3]


@pytest.mark.parametrize(("world_size", "until"), [(1, "tested"), (3, "newest")])  # two ranks: killed, below
def test_trained_in_between_it_ends_with_the_same_bits(uninterrupted, tmp_path, world_size, until):
    whole, wanted = uninterrupted(until, world_size)
    assert [line["span"] for line in wanted[0][0]] == [1, 2, 3]
    with ranks_on(world_size) as ranks:
        _trained_in_between(ranks, STAGES[until], _until(until, tmp_path / "data", tmp_path / "run"), wanted, whole)


@pytest.mark.parametrize(
    ("base", "strategy"),
    [
        ("comirec_sa", "imsr"),
        ("comirec_dr", "full_retraining"),
        ("comirec_dr", "sml"),
        ("comirec_dr", "ader"),
        ("mind", "fine_tuning"),
        ("mimn", "life_long"),
        ("comirec_dr", "frozen"),
    ],
)
def test_every_strategy_goes_on(folder, tmp_path, base, strategy):
    model = ModelConfig(base, dim=8, interests=3, mimn=MIMNConfig(12, 9, 8))
    changes = {"model": model, "strategy": replace(GROWING, name=strategy)}
    with ranks_on(2) as ranks:
        whole = _until("newest", folder, tmp_path / "whole", **changes)
        wanted = ranks.call(run, whole)
        config = _until("newest", tmp_path / "data", tmp_path / "run", **changes)
        _trained_in_between(ranks, (3, 5), config, wanted, whole)


@pytest.mark.parametrize("until", STAGES)
def test_killed_in_between_it_ends_with_the_same_bits(uninterrupted, tmp_path, until):
    """At every stage of the data, rank 1 is killed once; at the last, in the first test or validation.

    The points of the kills are counted in a run that is trained in between and not killed.
    """
    saves = {"checkpoint": CheckpointConfig(every_steps=3, keep_last=2)}
    whole, wanted = uninterrupted(until)
    counted, points = _until(until, tmp_path / "data", tmp_path / "counted", **saves), []
    with ranks_on(2) as ranks:
        for spans in STAGES[until]:
            _append(counted.data.path, spans)
            results = ranks.call(run_counted, counted)
            points.append(results[1][1].total())
    assert [left for left, _ in results] == wanted
    _ends_as(counted.run_dir, whole.run_dir)
    config = replace(counted, data=DataConfig(tmp_path / "again"), run_dir=tmp_path / "run")
    kills = [((1, points[0] // 3), None), ((1, 2 * points[1] // 3), None), ((1, 1), ["ranks"])]
    for spans, (kill, only) in zip(STAGES[until], kills, strict=True):
        _append(config.data.path, spans)
        found = run_killed_once(config, kill, only)
    assert found == wanted
    _ends_as(config.run_dir, whole.run_dir)


def test_the_newest_span_is_trained_now_and_tested_later(uninterrupted, tmp_path):
    (whole, wanted), data = uninterrupted("newest"), tmp_path / "data"
    newest, tested = (_until(until, data, tmp_path / "run") for until in ("newest", "tested"))
    with ranks_on(2) as ranks:
        _append(data, 3)
        assert [line["span"] for line in ranks.call(run, newest)[0][0]] == [1]
        assert [path.name for path in (tmp_path / "run" / "spans").iterdir()] == ["span=2"]
        assert newest_first(tmp_path / "run" / "checkpoints")[0].name == name_before_test(3)
        before = _last_checkpoint(tmp_path / "run")
        assert len(before[1]) == 3
        assert [line["span"] for line in ranks.call(run, tested)[0][0]] == [1]
        assert _last_checkpoint(tmp_path / "run") == before
        _append(data, 4)
        assert [line["span"] for line in ranks.call(run, tested)[0][0]] == [1, 2]  # tested on span 3, which stays
        assert newest_first(tmp_path / "run" / "checkpoints")[0].name == name_of(3, 0, 0)
        assert len(_last_checkpoint(tmp_path / "run")[1]) == 4
        _append(data, 5)
        assert ranks.call(run, newest) == wanted
        _ends_as(tmp_path / "run", whole.run_dir)


def test_every_keeps_the_exports_of_earlier_commands(folder, tmp_path):
    config = _until("newest", tmp_path / "data", tmp_path / "run", export="every")
    with ranks_on(1) as ranks:
        for spans in (2, 3):
            _append(config.data.path, spans)
            ranks.call(run, config)
        _append(config.data.path, 5)
        ranks.call(run, replace(config, training=replace(config.training, spans=3)))
    names = {path.name for path in (config.run_dir / "spans").iterdir()}
    assert names == {f"span={span}" for span in range(4)}


def test_the_command_says_that_nothing_is_left(folder, tmp_path):
    data = _append(tmp_path / "data", 2)
    arguments = ["--data.path", data, "--run_dir", tmp_path / "run", "--model.dim", 8, "--training.epochs", 1]
    arguments += ["--training.incremental_epochs", 1]

    def command(*more):
        (rank,) = start_ranks(tmp_path, *arguments, *more, world_size=1)
        _, errors = rank.communicate(timeout=90)
        assert rank.returncode == 0, errors
        return errors

    assert "no checkpoint, so from the beginning" in command()
    (checkpoint,) = newest_first(tmp_path / "run" / "checkpoints")[:1]
    held = (checkpoint / "manifest.json").stat().st_mtime_ns
    errors = command()
    assert f"nothing to do: {checkpoint} is behind span 0, and {data} has 2 spans" in errors
    assert "rank(s)" not in errors
    assert (checkpoint / "manifest.json").stat().st_mtime_ns == held
    assert f"resuming from {checkpoint}" in command("--training.until", "newest")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that has trained spans 0 to 2 of 3."""
    place = tmp_path_factory.mktemp("trained")
    config = _until("newest", _append(place / "data", 3), place / "run")
    with ranks_on(1) as ranks:
        ranks.call(run, config)
    return config


def _copied(config, place):
    """The run and its data, in another place."""
    shutil.copytree(config.data.path, place / "data")
    shutil.copytree(config.run_dir, place / "run")
    return replace(config, data=DataConfig(place / "data"), run_dir=place / "run")


@pytest.mark.parametrize("span", [0, 2])
def test_a_span_that_changed_is_named(trained, tmp_path, span):
    config = _copied(trained, tmp_path)
    other = {user: [list(items) for items in spans] for user, spans in HISTORY.items()}
    user = next(user for user, spans in other.items() if len(spans[span]) > 2)
    other[user][span].reverse()
    assert other != HISTORY
    write_dataset(config.data.path, other, spans=5)
    newest = newest_first(config.run_dir / "checkpoints")[0]
    with pytest.raises(ValueError, match=rf"resume: span {span} of .*data has changed since {newest} read it: name"):
        check(config)


def test_data_that_lost_a_span_are_refused(trained, tmp_path):
    config = _copied(trained, tmp_path)
    _append(config.data.path, 2)
    with pytest.raises(ValueError, match=r"has read 3 spans, and .*data has 2: name the data of that run"):
        check(config)


def test_a_branch_of_pre_training_compares_what_that_has_read(trained, tmp_path):
    """Span 0 alone: the later spans may be others."""
    later = {user: [spans[0], *(items[::-1] for items in spans[1:])] for user, spans in HISTORY.items()}
    first = {user: [spans[0][::-1], *spans[1:]] for user, spans in HISTORY.items()}
    others, changed = ((tmp_path / name) for name in ("later", "first"))
    write_dataset(others, later)
    write_dataset(changed, first)
    pretrained = next(path for path in newest_first(trained.run_dir / "checkpoints") if path.name == name_of(1, 0, 0))
    branch = replace(trained, run_dir=tmp_path / "branch", resume=str(pretrained), data=DataConfig(others))
    assert check(branch)[1].remaining.spans == range(1, 5)
    with pytest.raises(ValueError, match=r"span 0 of .* has changed"):
        check(replace(branch, data=DataConfig(changed)))


def test_checkpoints_of_older_formats_are_refused(trained, tmp_path):
    config = _copied(trained, tmp_path)
    for path in newest_first(config.run_dir / "checkpoints"):
        text = json.dumps(json.loads((path / "manifest.json").read_text()) | {"format_version": 1}).encode()
        (path / "manifest.json").write_bytes(text)
        os.system(f"cd {path} && sha256sum manifest.json > manifest.json.sha256")
    with pytest.raises(ValueError, match=r"has format 1, .* other scores: prepare the data again") as error:
        check(config)
    assert "\n" not in str(error.value)
    assert len(newest_first(config.run_dir / "checkpoints")) > 1  # none was set aside


def test_data_of_one_span_need_until_newest(tmp_path):
    data = _append(tmp_path / "data", 1)
    with pytest.raises(ValueError, match=r"training\.until: the data have one span.*--training\.until newest"):
        check(_until("tested", data, tmp_path / "run"))
    assert check(_until("newest", data, tmp_path / "run"))[1].remaining.spans == range(1)
