import json
import math
from dataclasses import replace

import duckdb
import numpy as np
import pytest

from dist_imsr.config import parse
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.finished import FinishedRun
from dist_imsr.evaluation.recommend import RecommendConfig, recommend
from dist_imsr.evaluation.repeats import RepeatsConfig
from dist_imsr.evaluation.retest import EvaluateConfig, retest, spans_to_test
from dist_imsr.training.config import TrainConfig
from tests import reference
from tests.evaluation.conftest import state_of
from tests.ranks import run_ranks
from tests.runs import run

WEIGHT, DECAY = 3.0, 0.8


@pytest.fixture(scope="module")
def repeating(finished, tmp_path_factory):
    """The folder of a run like `finished`, whose scores count repeats."""
    config = parse(TrainConfig, [f"--config={finished.folder / 'config.yaml'}"])
    folder = tmp_path_factory.mktemp("repeating") / "run"
    repeats = RepeatsConfig(enabled=True, weights=[WEIGHT], decays=[DECAY])
    run_ranks(2, run, replace(config, run_dir=folder, repeats=repeats, eval=EvalConfig([5], per_user=True)))
    return folder


def _scores(finished, folder, span, raw):
    """Each user's scores by item with and without the bonus, and what the user has met until the span's end."""
    stored, table = run_ranks(1, state_of, folder, span)[0]
    end, history = FinishedRun(folder).dataset.entries[span].end_second, {user: [] for user in stored}
    for user, item, time in sorted(finished.log, key=lambda row: row[2]):
        if time < end and user in history:
            history[user].append(item)
    plain, full = {}, {}
    for user, items in history.items():
        plain[user] = {item: reference.score(stored[user], row, "attentive") for item, row in table.items()}
        counts = dict.fromkeys(items, 0.0)
        for age, item in enumerate(reversed(items)):
            counts[item] += DECAY**age
        bonus = {item: WEIGHT * math.log1p(count) for item, count in counts.items()}
        full[user] = {item: score + bonus.get(item, 0.0) for item, score in plain[user].items()}
    return plain, full, history


def _recommended(topology, config):
    finished = FinishedRun(config.run_dir)
    return recommend(config, finished, finished.resolve_span(config.span), None, topology)


@pytest.mark.parametrize(("world_size", "exclude_seen"), [(2, False), (1, True)])
def test_recommendations_equal_brute_force(finished, repeating, tmp_path, world_size, exclude_seen):
    output = tmp_path / "recs.parquet"
    run_ranks(world_size, _recommended, RecommendConfig(repeating, output, top=6, exclude_seen=exclude_seen, block=9))
    plain, full, history = _scores(finished, repeating, 2, finished.log)
    rows = duckdb.sql(f"SELECT * FROM '{output}' ORDER BY user, rank").df()
    for user, mine in rows.groupby("user"):
        scores = plain[user] if exclude_seen else full[user]
        left = [item for item in scores if not (exclude_seen and item in history[user])]
        wanted = sorted(left, key=lambda item: -scores[item])[:6]
        assert mine["item"].tolist() == wanted
        np.testing.assert_allclose(mine["score"], [scores[item] for item in wanted], rtol=1e-4, atol=1e-5)


def _retested(topology, folder):
    config = EvaluateConfig(folder, span=1, eval=EvalConfig([5]))
    finished = FinishedRun(folder)
    return retest(config, finished, spans_to_test(config, finished), topology, lambda steps, *_: steps)


def test_tests_equal_brute_force(finished, repeating):
    _, full, history = _scores(finished, repeating, 1, finished.log)
    users = duckdb.sql(f"SELECT * FROM '{repeating / 'users' / 'span=2.parquet'}'").df()
    hits = []
    for user, item, rank in zip(users["user"], users["item"], users["rank"], strict=True):
        if item not in full[user]:  # it is new in the tested span, and its row is not trained
            hits.append(rank <= 5)
            continue
        above = sum(score > full[user][item] for score in full[user].values())
        assert (rank <= 5) == (above < 5) or above in (4, 5)  # untrained rows may come between
        hits.append(rank <= 5)
        assert (users["new"][users["user"] == user].item()) == (item not in history[user])
    line = json.loads((repeating / "metrics.jsonl").read_text().splitlines()[0])
    assert line["hr@5"] == pytest.approx(np.mean(hits))
    assert (line["repeat_weight"], line["repeat_decay"]) == (WEIGHT, DECAY)
    for (row,) in (run_ranks(world_size, _retested, repeating)[0] for world_size in (1, 3)):
        assert row["hr@5"] == pytest.approx(line["hr@5"])
        assert row["ndcg@5_unseen"] == pytest.approx(line["ndcg@5_unseen"])


def test_validation_prefers_repeats_where_users_repeat(finished, tmp_path):
    config = parse(TrainConfig, [f"--config={finished.folder / 'config.yaml'}"])
    repeats = RepeatsConfig(enabled=True, weights=[0.0, 8.0], decays=[0.9])
    lines = run_ranks(1, run, replace(config, run_dir=tmp_path / "run", repeats=repeats))
    found = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    plain = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines
    assert [line["repeat_weight"] for line in found] == [8.0, 8.0]  # users have three tastes of five items each
    assert sum(line["hr@10"] for line in found) > sum(line["hr@10"] for line in plain)
    assert [line["hr@10_unseen"] for line in found] == pytest.approx([line["hr@10_unseen"] for line in plain])


def test_the_tests_so_far_choose_for_the_next_one(finished, tmp_path):
    config = parse(TrainConfig, [f"--config={finished.folder / 'config.yaml'}"])
    weights, gains = [0.0, 0.1, 2.0, 50.0], []

    def trained(name, weights):
        repeats = RepeatsConfig(enabled=True, weights=weights, decays=[0.9])
        each = replace(config, run_dir=tmp_path / name, repeats=repeats, eval=EvalConfig([5], per_user=True))
        run_ranks(2, run, each)
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    for weight in weights:
        trained(str(weight), [weight])
        ranks = duckdb.sql(f"SELECT rank FROM '{tmp_path / str(weight) / 'users' / 'span=2.parquet'}'").df()["rank"]
        gains.append(sum(1 / math.log2(rank + 1) for rank in ranks if rank <= 5))
    first, second = trained("all", weights)
    assert len({round(gain, 6) for gain in gains}) > 1
    assert second["repeat_weight"] == weights[int(np.argmax(gains))]
    (alone,) = (line for line in trained("alone", [second["repeat_weight"]]) if line["span"] == second["span"])
    assert second["hr@5"] == pytest.approx(alone["hr@5"])
    assert first["repeat_weight"] in weights


@pytest.mark.parametrize(("key", "value"), [("weights", []), ("weights", [-1.0]), ("decays", [0.0]), ("decays", [1.1])])
def test_impossible_values_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"repeats\.{key}"):
        RepeatsConfig(**{key: value})
