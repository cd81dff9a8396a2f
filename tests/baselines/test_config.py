"""The command: what it refuses, what it writes, and that its numbers are those of the metrics."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from dist_imsr.baselines.config import BaselinesConfig, run_baselines
from dist_imsr.baselines.dense import SizeLimits
from dist_imsr.baselines.ials import IALSConfig
from dist_imsr.baselines.item_knn import ItemKNNConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from launch.baselines import main
from tests import reference
from tests.baselines import slow
from tests.prepared import retire_before


def _arguments(folder, tmp_path, *more):
    return [f"--data.path={folder}", f"--output={tmp_path / 'lines.jsonl'}", "--eval.top=[5]", *more]


def test_the_command(folder, history, tmp_path, capsys):
    users = tmp_path / "users"
    assert main(_arguments(folder, tmp_path, "--baselines=[popular]", f"--users={users}")) == 0
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert [(line["strategy"], line["span"], line["test_span"]) for line in lines] == [
        *(("popular", 1, 2), ("popular", 2, 3))
    ]
    for line in lines:
        counts, span = slow.popular(history, [line["span"]]), line["test_span"]
        items = Dataset(DataConfig(folder)).items_by_span[span]
        ranks = {
            user: slow.both_ranks(
                [counts[item] for item in range(items)], targets[-1], slow.past_of(history, user, span - 1), items
            )
            for user, targets in slow.tested_users(history, span).items()
        }
        new = [unseen for _, unseen in ranks.values() if np.isfinite(unseen)]
        assert line["users"] == len(ranks)
        assert line["hr@5"] == pytest.approx(np.mean([rank <= 5 for rank, _ in ranks.values()]))
        assert line["hr@5_unseen"] == pytest.approx(np.mean([rank <= 5 for rank in new]))
        assert line["ndcg@5_unseen"] == pytest.approx(np.mean([reference.ndcg([rank], 5) for rank in new]))
        table = pq.read_table(users / f"span={span}.parquet").to_pydict()
        assert sorted(table["user"]) == sorted(ranks)
        assert table["hr@5"] == [float(ranks[user][0] <= 5) for user in table["user"]]
        assert [value is None for value in table["hr@5_unseen"]] == [np.isinf(ranks[user][1]) for user in table["user"]]
    assert "mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baselines=[popular,popular]"], "baselines: "),
        (["--baselines=[none]"], "baselines: "),
        (["--baselines=[item_knn]", "--item_knn.max_items=5"], "item_knn.max_items is 5"),
        (["--baselines=[item_knn]", "--item_knn.max_interactions=9"], "item_knn.max_interactions is 9"),
        (["--baselines=[popular,own_history]", "--users=users"], "users: 'users'"),
        (["--spans=3"], "spans: 3 is impossible here; expected at most 2"),
        (["--eval.beyond=true"], "eval.beyond"),
        (["--own_history.decays=[0.5, 1.5]"], "own_history.decays"),
        (["--output=/no/such/folder/x"], "output"),
    ],
)
def test_impossible_keys_are_refused(folder, tmp_path, capsys, arguments, message):
    try:
        status = main(_arguments(folder, tmp_path, *arguments))
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_sizes_are_stated(folder):
    dataset = Dataset(DataConfig(folder))
    with pytest.raises(ValueError, match=r"has 40 items, and item_knn\.max_items is 39"):
        ItemKNNConfig(max_items=39).check_size("item_knn", dataset)
    SizeLimits(max_items=40).check_size("item_knn", dataset)


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'dist-imsr\[baselines\]'"):
        IALSConfig().check_size("ials", Dataset(DataConfig(folder)))


def test_scores_of_all_items_need_one_rank(folder):
    config = BaselinesConfig(DataConfig(folder), baselines=["own_history", "item_knn"])
    with pytest.raises(ValueError, match="baselines: 'item_knn'"):
        config.check(Dataset(config.data), 2)
    assert config.check(Dataset(config.data), 1) == range(1, 3)
    assert replace(config, baselines=["popular"], spans=1).check(Dataset(config.data), 2) == range(1, 2)


def test_retired_spans_are_refused(folder, tmp_path):
    data = shutil.copytree(folder, tmp_path / "data")
    retire_before(data, 1)
    with pytest.raises(ValueError, match=r"the rows before span 1 of .* were retired"):
        run_baselines(BaselinesConfig(DataConfig(data)))


def test_seen_items_are_left_out(folder, tmp_path):
    more = ["--baselines=[own_history]", "--eval.exclude_seen=true"]
    assert main(_arguments(folder, tmp_path, *more)) == 0
    for line in map(json.loads, (tmp_path / "lines.jsonl").read_text().splitlines()):
        assert line["hr@5_existing"] == 0
        assert line["hr@5_new"] == line["hr@5_unseen"]
