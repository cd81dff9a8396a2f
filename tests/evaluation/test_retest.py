import collections
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.finished import FinishedRun, SpanState
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.evaluation.retest import EvaluateConfig, retest, spans_to_test
from launch.evaluate import main
from tests import reference
from tests.evaluation.conftest import state_of
from tests.ranks import run_ranks

NAMES = [f"{name}@{top}" for top in (5, 10) for name in ("hr", "ndcg", "recall", "mrr")]


def _lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _retested(topology, config):
    run = FinishedRun(config.run_dir)
    return retest(config, run, spans_to_test(config, run), topology, lambda steps, *_: steps)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_finished_run_gives_the_same_metrics(finished, world_size):
    config = EvaluateConfig(finished.folder, eval=EvalConfig([5, 10]))
    for rows in run_ranks(world_size, _retested, config):
        assert [row["span"] for row in rows] == [1, 2]
        for row, line in zip(rows, _lines(finished.folder), strict=True):
            assert row["users"] == line["users"]
            for name in [*NAMES, "hr@5_any", "ndcg@10_any", "hr@10_new", "hr@5_existing"]:
                assert row[name] == pytest.approx(line[name], abs=1e-9), name


@pytest.mark.parametrize("world_size", [1, 3])
def test_metrics_per_user_average_to_the_means(finished, tmp_path, world_size):
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


def test_seen_items_are_no_hits(finished):
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
def test_spans_that_cannot_be_tested_are_refused(finished, capsys, arguments, named):
    assert main(["--run_dir", str(finished.folder), *arguments]) == 2
    errors = capsys.readouterr().err
    assert named in errors
    assert errors.count("\n") == 1


def test_popularity_is_that_of_the_log(finished):
    dataset = FinishedRun(finished.folder).dataset
    items = dataset.raw_ids("items", np.arange(10)).to_pylist()
    for span, entry in enumerate(dataset.entries):
        assert dataset.popularity(range(10), span).tolist() == [
            sum(item == other and time < entry.end_second for _, other, time in finished.log) for item in items
        ]


@pytest.mark.parametrize("world_size", [1, 3])
def test_coverage_and_the_long_tail_by_hand(finished, tmp_path, world_size):
    users = tmp_path / "users.parquet"
    config = EvaluateConfig(finished.folder, span=2, per_user=users, eval=EvalConfig([5], beyond=True))
    (row,) = run_ranks(world_size, _retested, config)[0]
    ((stored, _),) = run_ranks(1, state_of, finished.folder, 2)
    ((_, table),) = run_ranks(1, _grown, finished.folder)
    tested = FinishedRun(finished.folder).dataset.entries[3].first_second
    counts = collections.Counter(item for _, item, time in finished.log if time < tested)
    lists = []
    for user in pq.read_table(users)["user"].to_pylist():
        scores = {item: reference.score(stored[user], vector, "attentive") for item, vector in table.items()}
        lists += sorted(table, key=lambda item: -scores[item])[:5] if len(stored[user]) else list(table)[:5]
    assert row["coverage"] == pytest.approx(len(set(lists)) / len(table))
    total, reached, edge = sum(counts[item] for item in table), 0, 0
    for edge in sorted({counts[item] for item in table}):
        reached += edge * sum(counts[item] == edge for item in table)
        if reached >= 0.2 * total:
            break
    assert row["long_tail"] == pytest.approx(np.mean([counts[item] <= edge for item in lists]))


def _grown(topology, folder):
    """The item table for testing span 2 on span 3, which also has the new items of span 3."""
    run = FinishedRun(folder)
    state = SpanState(run, 2, run.dataset.items_by_span[3], topology, RankingConfig())
    items = run.dataset.raw_ids("items", np.arange(run.dataset.items_by_span[3])).to_pylist()
    return None, dict(zip(items, state.catalogue.flushed_weight().double().numpy(), strict=False))


@pytest.mark.parametrize("part", ["items-001.arrow", "interests-001.arrow", "interests-000.arrow"])
def test_missing_parts_are_named(finished, tmp_path, capsys, part):
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    (run / "spans" / "span=2" / part).unlink()
    assert main(["--run_dir", str(run), "--span", "2"]) == 2
    assert part in capsys.readouterr().err


def test_other_data_are_refused_and_moved_data_are_found(finished, tmp_path, capsys):
    other = shutil.copytree(finished.data, tmp_path / "data")
    arguments = ["--run_dir", str(finished.folder), "--span", "1", "--data", str(other)]
    assert main(arguments) == 0
    manifest = json.loads((other / "dataset.json").read_text())
    for span, status in ((2, 0), (1, 2)):  # the later span is not of this export
        manifest["spans"][span]["digest"] = "0" * 64
        (other / "dataset.json").write_text(json.dumps(manifest))
        assert main(arguments) == status
    assert "other data" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "model: {base: none}", "[", "model: {unknown: 1}\nbatch: {}"])
def test_a_damaged_configuration_is_named(tmp_path, capsys, text):
    (tmp_path / "config.yaml").write_text(text)
    assert main(["--run_dir", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert "config.yaml is no configuration" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("key", ["json", "per_user"])
def test_a_folder_is_no_file(finished, tmp_path, capsys, key):
    with pytest.raises(SystemExit):
        main(["--run_dir", str(finished.folder), f"--{key}", str(tmp_path)])
    assert key in capsys.readouterr().err
