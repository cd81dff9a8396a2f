import itertools
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig
from dist_imsr.data.drift import DriftConfig
from dist_imsr.data.prepare import PrepareConfig, prepare
from dist_imsr.evaluation.planted import StoredInterests, Truth, judged, matched
from dist_imsr.model.detector import DetectorConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.strategies import StrategyConfig
from dist_imsr.strategies.imsr import IMSRConfig
from dist_imsr.training.config import TrainConfig, TrainingConfig
from launch.evaluate import main
from tests import runs
from tests.prepared import drawn_history, write_dataset
from tests.ranks import run_ranks


def _truth(*rows):
    users, clusters, spans = np.array(rows).T
    return Truth(users, clusters, spans, np.arange(3))


def test_detections_are_compared_with_planted_interests():
    truth = _truth((0, 0, 0), (0, 1, 2), (1, 0, 2), (2, 0, 0), (2, 1, 1), (5, 0, 2))
    users, fit = np.array([0, 1, 2, 3]), np.array([0.01, 0.5, 0.02, 0.9])
    row = judged(users, fit, fit < 0.1, truth, span=2)  # user 5 was not examined
    assert (row["users"], row["planted"]) == (4, 2)
    assert (row["precision"], row["recall"], row["f1"]) == (0.5, 0.5, 0.5)
    assert row["best_c1"] == pytest.approx(0.7)
    assert row["best_f1"] == pytest.approx(0.8)
    assert row["late"] is None


def test_who_lacked_an_earlier_interest_is_found_late():
    truth = _truth((0, 0, 2), (1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 1, 2))
    users, puzzled = np.arange(4), np.array([True, True, True, False])
    row = judged(users, np.zeros(4), puzzled, truth, span=2, lacking=np.array([0, 2, 3]))  # 0 has a new one as well
    assert (row["precision"], row["late"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_the_best_of_all(seed):
    draw = np.random.default_rng(seed)
    users, fit = np.arange(30), draw.integers(8, size=30) / 8  # with ties
    truth = _truth(*((user, 0, 1) for user in range(30) if draw.random() < 0.3), (99, 0, 0))
    best = max(judged(users, fit, fit < c1, truth, 1)["f1"] for c1 in np.arange(10) / 8)
    row = judged(users, fit, fit < 0.5, truth, 1)
    assert row["best_f1"] == pytest.approx(best)
    assert judged(users, fit, fit < row["best_c1"], truth, 1)["f1"] == pytest.approx(best)


def test_no_detections():
    no_users = np.empty(0, np.int64), np.empty(0), np.empty(0, bool)
    row = judged(*no_users, _truth((0, 0, 0)), 1)
    assert (row["users"], row["precision"], row["best_c1"]) == (0, None, None)


def test_matching_is_the_best_assignment():
    centroids = np.eye(3)
    vectors = np.array([[1.0, 0.9, 0], [1.0, 0, 0.1], [0, 0, 2.0], [1.0, 1.0, 1.0]])
    stored = [
        StoredInterests(np.array([0]), np.array([0, 3]), vectors[:3]),
        StoredInterests(np.array([4]), np.array([0, 1]), vectors[3:]),
    ]
    truth = _truth((0, 0, 0), (0, 1, 1), (4, 1, 0), (4, 2, 1), (7, 0, 0))  # user 7 has no stored interests
    row, lacking = matched(stored, centroids, truth, span=1, least=0.6)
    cosines = []
    for planted, vectors_of_user in (([0, 1], vectors[:3]), ([1, 2], vectors[3:])):
        unit = vectors_of_user / np.linalg.norm(vectors_of_user, axis=1, keepdims=True)
        size = min(len(planted), len(unit))
        cosines.append(
            max(
                sum(unit[slot, cluster] for cluster, slot in zip(some, slots, strict=True))
                for some in itertools.combinations(planted, size)
                for slots in itertools.permutations(range(len(unit)), size)
            )
        )
    assert row["cosine"] == pytest.approx(sum(cosines) / 3)
    assert row["held"] == pytest.approx(2 / 4)  # 0 by [1, 0, .1] and 1 by [1, .9, 0]; one interest serves one cluster
    assert row["held_new"] == pytest.approx(1 / 2)
    assert (row["interests"], row["interests_planted"]) == (2, 2)
    assert lacking.tolist() == [4]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run over planted drift whose detector finds every user puzzled, on two ranks."""
    folder = tmp_path_factory.mktemp("planted")
    drift = DriftConfig(users=200, items=400, clusters=20, interactions=[6000, 3000], fresh=0.0)
    options = {"spans": 3, "min_interactions": 1, "buckets": 4}
    prepare(PrepareConfig(source="drift", output=folder / "data", drift=drift, **options), Console(quiet=True))
    config = TrainConfig(
        data=DataConfig(folder / "data"),
        run_dir=folder / "run",
        model=ModelConfig(dim=8),
        strategy=StrategyConfig("imsr", IMSRConfig(detector=DetectorConfig(c1=2.0, share=0.0, delta_k=1))),
        batch=BatchConfig(size=64, max_targets=3, negatives=20),
        training=TrainingConfig(epochs=2, incremental_epochs=2, export="every"),
    )
    run_ranks(2, runs.run, config)
    return config.run_dir


def test_a_run_is_compared_with_its_truth(run, tmp_path, capsys):
    lines = tmp_path / "rows.jsonl"
    assert main(["--run_dir", str(run), "--drift_truth", "true", "--json", str(lines)]) == 0
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row["span"] for row in rows] == [0, 1, 2]
    assert rows[0]["users"] == 0
    for row in rows[1:]:
        assert row["recall"] == 1
        assert row["precision"] == row["planted"] / row["users"]
        assert 0 < row["moved"] < 1
        assert 0 <= row["late"] <= 1 - row["precision"]
        assert 4 <= row["interests"] <= 6
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["users"] for row in rows[1:]] == [line["puzzled_users"] for line in lines]
    assert [row["interests"] for row in rows[1:]] == pytest.approx([line["interests_mean"] for line in lines])
    assert "precision" in capsys.readouterr().out


def test_exports_hold_every_item_and_interest_once(run):
    def columns(pattern, name):
        return [pa.ipc.open_file(path).read_all()[name].to_pylist() for path in sorted(run.glob(pattern))]

    first, second = columns("spans/span=2/items-*.arrow", "item")
    assert first + second == list(range(len(first) + len(second)))
    for rank, users in enumerate(columns("spans/span=2/interests-*.arrow", "user")):
        assert users == sorted(users)
        assert {user % 4 for user in users} == {2 * rank, 2 * rank + 1}
    assert not list(run.glob("spans/.*"))


@pytest.mark.parametrize(
    ("remove", "named"),
    [("config.yaml", "config.yaml"), ("spans", "--training.export last or every"), ("truth", "truth_users.parquet")],
)
def test_missing_files_are_named(run, tmp_path, capsys, remove, named):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    if remove == "spans":
        shutil.rmtree(copy / "spans")
    elif remove == "truth":
        text = (copy / "config.yaml").read_text()
        (copy / "config.yaml").write_text(
            text.replace(str(run.parent / "data"), str(write_dataset(tmp_path / "plain", drawn_history())))
        )
    else:
        (copy / remove).unlink()
    assert main(["--run_dir", str(copy), "--drift_truth", "true"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert named in errors
