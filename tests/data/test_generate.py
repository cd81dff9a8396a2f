"""A generated raw log can be prepared, and has the planted interactions."""

import gzip
import itertools
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow.csv
import pytest
from rich.console import Console

from dist_imsr.data import generate as module
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.drift import DriftConfig, PlantedDrift
from dist_imsr.data.generate import GenerateConfig, generate
from dist_imsr.data.prepare import PrepareConfig, prepare
from dist_imsr.data.raw_formats import TAOBAO_WINDOW
from launch.generate import main
from tests.data.test_prepare import record_of

SPANS = 3
SMALL = DriftConfig(users=1500, items=3000, clusters=30, interactions=[45_000, 15_000], activity=0.8, seed=4)


def _generate(path, **options):
    config = {"drift": SMALL, "spans": SPANS, "min_interactions": 1} | options
    return generate(GenerateConfig(source="drift", output=path, **config), Console(quiet=True))


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "UserBehavior.csv"
    return path, _generate(path)


def _columns(path):
    return [column.to_numpy() for column in _read(path).columns]


def _read(path):
    return pyarrow.csv.read_csv(path, pyarrow.csv.ReadOptions(autogenerate_column_names=True))


def test_it_is_sorted_like_the_public_file(log):
    path, written = log
    users, items, categories, behaviours, times = _columns(path)
    assert len(users) == written
    np.testing.assert_array_equal(np.lexsort((times, users)), np.arange(written))
    np.testing.assert_array_equal(categories, PlantedDrift(SMALL, 0.5, SPANS).clusters[items])
    assert set(behaviours) == {"pv"}
    assert (TAOBAO_WINDOW[0] <= times).all()
    assert (times <= TAOBAO_WINDOW[1]).all()


def test_preparing_it_equals_preparing_drift_itself(log, tmp_path):
    path, written = log
    shared = {"spans": SPANS, "min_interactions": 1, "buckets": 4}
    manifests = [
        prepare(PrepareConfig(output=tmp_path / name, **shared, **source), Console(quiet=True))
        for name, source in {
            "read": {"source": "taobao", "input": path},
            "planted": {"source": "drift", "drift": SMALL},
        }.items()
    ]
    read, planted = manifests
    assert [record_of(manifest)["rows_read"] for manifest in manifests] == [written, written]
    assert record_of(read)["rejected"] == {}
    assert (read["spans"][-1]["users"], read["spans"][-1]["items"]) == (
        planted["spans"][-1]["users"],
        planted["spans"][-1]["items"],
    )
    # The first span begins at the first interaction, and times are rounded to seconds: a few cross an edge.
    interactions = [[entry["interactions"] for entry in manifest["spans"]] for manifest in manifests]
    assert np.abs(np.subtract(*interactions)).max() < 0.005 * written
    assert _interactions_by_user(tmp_path / "read") == _interactions_by_user(tmp_path / "planted")


def _interactions_by_user(folder):
    dataset, counts = Dataset(DataConfig(folder, verify=True)), Counter()
    for span, bucket in itertools.product(range(SPANS + 1), range(4)):
        sequences = dataset.sequences(span, bucket)
        users = dataset.raw_ids("users", sequences.users).to_pylist()
        counts += dict(zip(users, np.diff(sequences.offsets).tolist(), strict=True))
    return counts


def test_users_with_too_few_interactions_are_dropped(log, tmp_path):
    users, counts = np.unique(_columns(log[0])[0], return_counts=True)
    assert _generate(tmp_path / "log.csv", min_interactions=40) == counts[counts >= 40].sum() < log[1]
    assert set(_columns(tmp_path / "log.csv")[0]) == set(users[counts >= 40])


def test_a_name_in_gz_is_compressed(log, tmp_path):
    assert _generate(tmp_path / "log.csv.gz") == log[1]
    with gzip.open(tmp_path / "log.csv.gz") as file:
        assert file.read() == log[0].read_bytes()


def test_an_interrupted_run_leaves_the_older_file(log, tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    path.write_text("older")
    with pytest.raises(ValueError, match=r"output: .*log.csv exists"):
        _generate(path)

    class Stopped(PlantedDrift):
        def events(self, chunk):
            if chunk:
                raise KeyboardInterrupt
            return super().events(chunk)

    monkeypatch.setattr(module, "PlantedDrift", Stopped)
    with pytest.raises(KeyboardInterrupt):
        _generate(path, overwrite=True)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("log.csv", "older")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "taobao", "--output", "log.csv"], "source: 'taobao'"),
        (["--source", "drift", "--output", "nowhere/log.csv"], "output: 'nowhere/log.csv'"),
        (["--source", "drift", "--output", "/dev/null", "--overwrite", "true"], "output: '/dev/null'"),
        (["--source", "drift", "--output", "log.csv", "--drift.clusters", "3"], "drift.clusters"),
    ],
)
def test_an_error_names_the_key(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
    try:
        status = main()
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_more_users_do_not_change_the_first_ones(log, tmp_path):
    _generate(tmp_path / "more.csv", drift=replace(SMALL, users=3000, interactions=[90_000, 30_000]))
    few, more = (_read(path) for path in (log[0], tmp_path / "more.csv"))
    first = len(few.filter(pyarrow.compute.less(few["f0"], 1024)))  # of the first chunk
    assert few.slice(0, first).equals(more.slice(0, first))
