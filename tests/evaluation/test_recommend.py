from dataclasses import replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_imsr.data.dataset import DataConfig
from dist_imsr.evaluation.finished import FinishedRun
from dist_imsr.evaluation.parts import JointFile
from dist_imsr.evaluation.recommend import RecommendConfig, Recommended, recommend, requested_users
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.strategies import StrategyConfig
from dist_imsr.training.config import TrainConfig, TrainingConfig
from launch.recommend import main
from tests import reference
from tests.prepared import write_dataset
from tests.ranks import run_ranks
from tests.runs import run


def _recommend(topology, config):
    finished = FinishedRun(config.run_dir)
    users = requested_users(config, finished.dataset)
    return recommend(config, finished, finished.resolve_span(config.span), users, topology)


@pytest.mark.parametrize(("world_size", "exclude_seen"), [(1, False), (2, True), (3, False)])
def test_lists_equal_brute_force(finished, last_state, tmp_path, world_size, exclude_seen):
    output = tmp_path / "recs.parquet"
    config = RecommendConfig(finished.folder, output, top=7, exclude_seen=exclude_seen, block=7)
    stored, table = last_state
    recommended = len([user for user in stored if len(stored[user])])
    written = Recommended(users=recommended, fewer=0, none=0, span=2, items=len(table))
    assert run_ranks(world_size, _recommend, config) == [written] * world_size
    assert [path.name for path in tmp_path.iterdir()] == ["recs.parquet"]
    rows = duckdb.sql(f"SELECT * FROM '{output}' ORDER BY user, rank").df()
    seen = {user: set() for user in stored}
    last = FinishedRun(finished.folder).dataset.entries[3].first_second
    for user, item, time in finished.log:
        if time < last:
            seen[user].add(item)
    for user, mine in rows.groupby("user"):
        excluded = seen[user] if exclude_seen else set()
        scores = {item: reference.score(stored[user], row, "attentive") for item, row in table.items()}
        wanted = sorted((item for item in table if item not in excluded), key=lambda item: -scores[item])[:7]
        assert mine["item"].tolist() == wanted
        assert mine["rank"].tolist() == list(range(1, 8))
        np.testing.assert_allclose(mine["score"], [scores[item] for item in wanted], rtol=1e-4, atol=1e-6)
        assert mine["interest"].tolist() == [int((stored[user] @ table[item]).argmax()) for item in wanted]


def test_any_number_of_ranks_lists_users_in_the_same_order(finished, tmp_path):
    files = [tmp_path / f"{world_size}.parquet" for world_size in (1, 3)]
    for world_size, path in zip((1, 3), files, strict=True):
        run_ranks(world_size, _recommend, RecommendConfig(finished.folder, path, top=3, block=7))
    one, three = (pq.read_table(path, columns=["user", "item", "rank"]) for path in files)
    assert one.equals(three)


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_some_users(finished, tmp_path, kind):
    path, output = tmp_path / f"users.{kind}", tmp_path / "recs.parquet"
    if kind == "txt":
        path.write_text("user-7\nuser-3\n\nuser-7\n")
    else:
        pq.write_table(pa.table({"id": ["user-7", "user-3", "user-7"]}), path)
    arguments = ["--run_dir", str(finished.folder), "--users", str(path), "--output", str(output), "--top", "3"]
    assert main(arguments) == 0
    assert sorted(pq.read_table(output)["user"].to_pylist()) == ["user-3"] * 3 + ["user-7"] * 3


def test_an_id_with_blanks_is_another_user(finished, tmp_path, capsys):
    path = tmp_path / "users.txt"
    path.write_text(" user-1\nUser-1\nuser-1\n")
    arguments = ["--run_dir", str(finished.folder), "--users", str(path), "--output", str(tmp_path / "recs.parquet")]
    assert main(arguments) == 2
    assert "unknown users ' user-1', User-1: take them out" in capsys.readouterr().err


def test_unknown_users_are_listed_or_skipped(finished, tmp_path, capsys, caplog):
    path, output = tmp_path / "users.txt", tmp_path / "recs.parquet"
    path.write_text("user-1\nnobody\n")
    arguments = ["--run_dir", str(finished.folder), "--users", str(path), "--output", str(output)]
    assert main(arguments) == 2
    assert "unknown users nobody" in capsys.readouterr().err
    assert not output.exists()
    assert main([*arguments, "--unknown", "skip", "--exclude_seen"]) == 0
    assert set(pq.read_table(output)["user"].to_pylist()) == {"user-1"}


@pytest.mark.parametrize(
    ("users", "output", "named"),
    [("missing.txt", "recs.parquet", "missing.txt"), ("empty.txt", "recs.parquet", "holds no user ids")],
)
def test_bad_files_are_refused_in_one_line(finished, tmp_path, capsys, users, output, named):
    (tmp_path / "empty.txt").write_text("\n")
    arguments = ["--users", str(tmp_path / users), "--output", str(tmp_path / output)]
    assert main(["--run_dir", str(finished.folder), *arguments]) == 2
    errors = capsys.readouterr().err
    assert named in errors
    assert errors.count("\n") == 1


def test_a_folder_that_is_not_there_is_refused(finished, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--run_dir", str(finished.folder), "--output", str(tmp_path / "no" / "recs.parquet")])
    assert stopped.value.code == 2
    assert "output" in capsys.readouterr().err


def test_more_places_than_items_and_ranks_without_users(finished, last_state, tmp_path):
    path, output = tmp_path / "users.txt", tmp_path / "recs.parquet"
    path.write_text("user-7\n")
    config = RecommendConfig(finished.folder, output, users=str(path), top=10_000, exclude_seen=True)
    items = len(last_state[1])
    written = run_ranks(3, _recommend, config)
    assert written == [Recommended(users=1, fewer=1, none=0, span=2, items=items)] * 3
    reasons = f"the span knows {items} items, and they have met the others"
    assert written[0].describe(config).endswith(f"; 1 have fewer than 10000 items: {reasons}")
    found = pq.read_table(output)["item"].to_pylist()
    edge = FinishedRun(finished.folder).dataset.entries[3].first_second
    seen = {item for user, item, time in finished.log if user == "user-7" and time < edge}
    assert sorted(found) == sorted(set(last_state[1]) - seen)


def test_users_who_have_met_almost_all_items(tmp_path):
    """User 0 has met all items, users 1 and 2 all but two, user 3 has met one; users 4 and 5 come later."""
    history = {0: [0, 1, 2, 3, 4, 5], 1: [0, 1, 2, 3], 2: [2, 3, 4, 5], 3: [5, 5, 5, 5], 4: [], 5: []}
    data = write_dataset(tmp_path / "data", {user: [items, [0, 1, 2]] for user, items in history.items()}, buckets=4)
    config = TrainConfig(
        data=DataConfig(data),
        run_dir=tmp_path / "run",
        model=ModelConfig(dim=4, interests=2),
        strategy=StrategyConfig("fine_tuning"),
        training=TrainingConfig(epochs=1, spans=0),
    )
    run_ranks(1, run, config)
    top = {"top": 4, "exclude_seen": True}
    request = RecommendConfig(config.run_dir, tmp_path / "recs.parquet", **top)
    written = run_ranks(2, _recommend, request)
    assert written == [Recommended(users=3, fewer=2, none=1, span=0, items=6)] * 2
    assert written[0].describe(request) == (
        f"3 users, span 0: written to {request.output}; 2 have fewer than 4 items, 1 more has none: they have met the "
        "others"
    )
    rows = pq.read_table(request.output)["user"].to_pylist()
    assert sorted(rows) == [1, 1, 2, 2, 3, 3, 3, 3]
    plain = RecommendConfig(config.run_dir, request.output, top=4)
    assert run_ranks(1, _recommend, plain)[0].describe(plain) == f"4 users, span 0: written to {request.output}"
    (tmp_path / "users.txt").write_text("5\n2\n4\n")
    some = RecommendConfig(config.run_dir, request.output, users=str(tmp_path / "users.txt"), top=1, unknown="skip")
    assert [written.users for written in run_ranks(2, _recommend, some)] == [1, 1]
    with pytest.raises(RuntimeError, match="unknown users 5, 4"):
        run_ranks(2, _recommend, replace(some, unknown="error"))


def _failing(topology, path):
    def fail():
        with JointFile(path, topology) as file:
            file.write(pa.table({"a": [1]}))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with JointFile(path.with_name("nobody"), topology):
        pass


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.parquet"
    path.write_text("old")
    run_ranks(2, _failing, path)
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.parquet"]
