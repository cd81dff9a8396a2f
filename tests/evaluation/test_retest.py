import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.finished import FinishedRun
from dist_imsr.evaluation.retest import EvaluateConfig, retest, spans_to_test
from launch.evaluate import main
from tests.ranks import run_ranks

NAMES = [f"{name}@{top}" for top in (5, 10) for name in ("hr", "ndcg", "recall", "mrr")]


def _lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _retested(topology, config):
    run = FinishedRun(config.run_dir)
    return retest(config, run, spans_to_test(config, run), topology, lambda steps, *_: steps)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_finished_run_tells_the_same_numbers(finished, world_size):
    config = EvaluateConfig(finished.folder, eval=EvalConfig([5, 10]))
    for rows in run_ranks(world_size, _retested, config):
        assert [row["span"] for row in rows] == [1, 2]
        for row, line in zip(rows, _lines(finished.folder), strict=True):
            assert row["users"] == line["users"]
            for name in [*NAMES, "hr@5_any", "ndcg@10_any", "hr@10_new", "hr@5_existing"]:
                assert row[name] == pytest.approx(line[name], abs=1e-9), name


@pytest.mark.parametrize("world_size", [1, 3])
def test_each_users_own_values_make_up_the_means(finished, tmp_path, world_size):
    path = tmp_path / "users.parquet"
    config = EvaluateConfig(finished.folder, span=1, per_user=path, eval=EvalConfig([5], beyond=True))
    (row,) = run_ranks(world_size, _retested, config)[0]
    table = pq.read_table(path).to_pandas()
    assert len(table) == row["users"]
    assert set(table["user"]) <= {user for user, *_ in finished.log}
    for name in ("hr@5", "ndcg@5", "recall@5", "mrr@5", "hr@5_any"):
        assert table[name].mean() == pytest.approx(row[name])
    assert (table["hr@5"] == (table["rank"] <= 5)).all()
    assert table["rank"][table["hr@5"] == 0].isna().all()
    assert 0 < row["coverage"] <= 1
    assert 0 <= row["long_tail"] <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]


def test_what_was_seen_is_no_hit(finished):
    config = EvaluateConfig(finished.folder, span=1, eval=EvalConfig([60], exclude_seen=True))
    (row,) = run_ranks(2, _retested, config)[0]
    assert row["hr@60_existing"] == 0
    assert row["hr@60_new"] == 1


def test_the_command(finished, tmp_path, capsys):
    lines = tmp_path / "rows.jsonl"
    assert main(["--run_dir", str(finished.folder), "--span", "1", "--eval.top", "[5]", "--json", str(lines)]) == 0
    assert "recall@5" in capsys.readouterr().out
    assert json.loads(lines.read_text())["hr@5"] == pytest.approx(_lines(finished.folder)[0]["hr@5"])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--span", "7"], "holds no span 7, only 0, 1, 2"),
        (["--per_user", "users.parquet"], "name one of the spans [1, 2]"),
    ],
)
def test_what_cannot_be_tested_is_refused(finished, capsys, arguments, named):
    assert main(["--run_dir", str(finished.folder), *arguments]) == 2
    errors = capsys.readouterr().err
    assert named in errors
    assert errors.count("\n") == 1


def test_missing_parts_are_named(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    (run / "spans" / "span=2" / "items-001.arrow").unlink()
    assert main(["--run_dir", str(run), "--span", "2"]) == 2
    assert "span=2 does not hold every item once" in capsys.readouterr().err


def test_the_long_tail_holds_the_last_fifth(finished):
    run = FinishedRun(finished.folder)
    counts = run.dataset.popularity(range(10))
    items = run.dataset.raw("items", np.arange(10)).to_pylist()
    assert counts.tolist() == [sum(item == other for _, other, _ in finished.log) for item in items]
