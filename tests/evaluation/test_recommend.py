import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_imsr.evaluation.finished import FinishedRun
from dist_imsr.evaluation.parts import JointFile
from dist_imsr.evaluation.recommend import RecommendConfig, recommend, requested_users
from launch.recommend import main
from tests import reference
from tests.ranks import run_ranks


def _recommend(topology, config):
    run = FinishedRun(config.run_dir)
    return recommend(config, run, run.resolve_span(config.span), requested_users(config, run.dataset), topology)


@pytest.mark.parametrize(("world_size", "exclude_seen"), [(1, False), (2, True), (3, False)])
def test_lists_equal_brute_force(finished, last_state, tmp_path, world_size, exclude_seen):
    output = tmp_path / "recs.parquet"
    config = RecommendConfig(finished.folder, output, top=7, exclude_seen=exclude_seen, block=7)
    stored, table = last_state
    recommended = len([user for user in stored if len(stored[user])])
    assert run_ranks(world_size, _recommend, config) == [recommended] * world_size
    assert [path.name for path in tmp_path.iterdir()] == ["recs.parquet"]
    rows = duckdb.sql(f"SELECT * FROM '{output}' ORDER BY user, rank").df()
    seen = {user: set() for user in stored}
    last = FinishedRun(finished.folder).dataset.manifest["span_edges"][3]
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
    assert run_ranks(3, _recommend, config) == [1] * 3
    found = pq.read_table(output)["item"].to_pylist()
    edge = FinishedRun(finished.folder).dataset.manifest["span_edges"][3]
    seen = {item for user, item, time in finished.log if user == "user-7" and time < edge}
    assert sorted(found) == sorted(set(last_state[1]) - seen)


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
