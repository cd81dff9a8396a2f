"""Recommendations for the users who changed, and what exported files say of their origin, over data that grow."""

import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.finished import FinishedRun
from dist_imsr.evaluation.recommend import RecommendConfig, check_rows, recommend, requested_users
from dist_imsr.evaluation.retest import EvaluateConfig, spans_to_test
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.strategies import StrategyConfig
from dist_imsr.training.config import TrainConfig, TrainingConfig
from launch.export import main as export
from launch.recommend import main
from tests.prepared import drawn_history, retire_before, write_dataset
from tests.ranks import ranks_on, run_ranks
from tests.runs import run

HISTORY = drawn_history(users=60, items=80, spans=5, longest=4)
SPAN = 3  # the last trained one; the data have one more


def _trained(folder, strategy):
    config = TrainConfig(
        data=DataConfig(write_dataset(folder / "data", HISTORY)),
        run_dir=folder / "run",
        model=ModelConfig(dim=8, interests=2),
        strategy=StrategyConfig(strategy),
        batch=BatchConfig(size=16, max_targets=3, negatives=20, eval_size=24),
        training=TrainingConfig(epochs=1, incremental_epochs=1, export="every"),
        eval=EvalConfig([5]),
    )
    run_ranks(2, run, config)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return _trained(tmp_path_factory.mktemp("since"), "imsr")


def _recommend(topology, config):
    finished = FinishedRun(config.run_dir)
    users = requested_users(config, finished.dataset)
    return recommend(config, finished, finished.resolve_span(config.span), users, topology)


def _active(spans):
    return {user for user, items in HISTORY.items() if any(items[span] for span in spans)}


def _users(output):
    return set(pq.read_table(output)["user"].to_pylist())


@pytest.mark.parametrize("world_size", [1, 3])
def test_those_who_were_active_later_get_their_lists(trained, tmp_path, world_size):
    everyone = RecommendConfig(trained.run_dir, tmp_path / "all.parquet", top=5)
    older = replace(everyone, output=tmp_path / "older.parquet", since=0, span=1)
    with ranks_on(world_size) as ranks:
        ranks.call(_recommend, everyone)
        ranks.call(_recommend, older)
        lists = pq.read_table(everyone.output)
        assert _users(everyone.output) == _active(range(SPAN + 1))
        assert _users(older.output) == _active([1])
        for since in range(SPAN):
            config = replace(everyone, output=tmp_path / f"{since}.parquet", since=since)
            ranks.call(_recommend, config)
            changed = _active(range(since + 1, SPAN + 1))
            assert changed < _users(everyone.output)
            wanted = lists.filter(pa.compute.is_in(lists["user"], pa.array(sorted(changed))))
            assert pq.read_table(config.output) == wanted


def test_listed_users_are_those_of_them_who_changed(trained, tmp_path):
    changed, listed = _active([SPAN]), set(range(0, 60, 3)) & _active(range(SPAN + 1))
    (tmp_path / "users.txt").write_text("".join(f"{user}\n" for user in sorted(listed)))
    output = tmp_path / "recs.parquet"
    arguments = ["--run_dir", str(trained.run_dir), "--output", str(output), "--since", str(SPAN - 1)]
    assert main([*arguments, "--users", str(tmp_path / "users.txt")]) == 0
    assert _users(output) == changed & listed
    assert changed & listed < changed


def test_nobody_who_changed_leaves_an_empty_file(trained, tmp_path):
    config = RecommendConfig(trained.run_dir, tmp_path / "recs.parquet", since=SPAN)
    written = run_ranks(2, _recommend, config)[0]
    line = f"0 users, span {SPAN}: written to {config.output}; "
    assert written.describe(config) == f"{line}nobody changed after span {SPAN}"
    assert written.describe(replace(config, users="users.txt")) == f"{line}none of them changed after span {SPAN}"
    run_ranks(1, _recommend, replace(config, output=tmp_path / "all.parquet", since=None))
    empty, full = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("recs", "all"))
    assert len(empty) == 0
    assert empty.schema.equals(full.schema, check_metadata=True)


def test_a_new_model_changes_everybody(tmp_path):
    config = _trained(tmp_path, "full_retraining")
    request = RecommendConfig(config.run_dir, tmp_path / "recs.parquet", since=SPAN - 1)
    run_ranks(2, _recommend, request)
    assert _users(request.output) == _active(range(SPAN + 1))


@pytest.mark.parametrize(
    ("since", "named"), [(-1, "since: -1 is impossible here; expected at least 0"), (4, "expected at most 3, the")]
)
def test_impossible_spans_are_refused(trained, tmp_path, capsys, since, named):
    arguments = ["--run_dir", str(trained.run_dir), "--output", str(tmp_path / "recs.parquet"), f"--since={since}"]
    try:
        status = main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert named in capsys.readouterr().err


@pytest.fixture
def retired(trained, tmp_path):
    """The run, over a copy of its data without the rows of spans 0 and 1."""
    data = shutil.copytree(trained.data.path, tmp_path / "data")
    retire_before(data, 2)
    return FinishedRun(trained.run_dir, data)


def test_retired_spans_between_are_refused(retired, tmp_path):
    config = RecommendConfig(retired.folder, tmp_path / "recs.parquet", since=0)
    with pytest.raises(
        ValueError, match=r"who changed after span 0 is not known, as the rows before span 2 of .* name"
    ):
        check_rows(config, retired.dataset, SPAN)
    for since, span in ((1, SPAN), (SPAN, SPAN), (0, 0), (None, SPAN)):
        check_rows(replace(config, since=since), retired.dataset, span)


def test_retired_items_are_not_left_out_and_the_command_says_so(retired, tmp_path, capsys):
    output = tmp_path / "recs.parquet"
    arguments = ["--run_dir", str(retired.folder), "--data", str(retired.dataset.path), "--output", str(output)]
    assert main([*arguments, "--exclude_seen", "true", "--top", "80"]) == 0
    assert "items that users met before span 2 are not left out" in capsys.readouterr().err
    listed = pq.read_table(output).group_by("user").aggregate([("item", "list")]).to_pydict()
    known = retired.dataset.items_by_span[SPAN]
    for user, items in zip(listed["user"], listed["item_list"], strict=True):
        assert set(items) == set(range(known)) - {item for span in (2, 3) for item in HISTORY[user][span]}


def test_tests_that_need_retired_rows_are_refused(retired):
    assert spans_to_test(EvaluateConfig(retired.folder), retired) == [1, 2, 3]
    with pytest.raises(ValueError, match=r"eval\.exclude_seen: .* the rows before span 2 of"):
        spans_to_test(EvaluateConfig(retired.folder, eval=EvalConfig([5], exclude_seen=True)), retired)
    retire_before(retired.dataset.path, 3)
    later = FinishedRun(retired.folder, retired.dataset.path)
    assert spans_to_test(EvaluateConfig(later.folder), later) == [2, 3]
    with pytest.raises(ValueError, match=r"span: 1 is tested on span 2, but the rows before span 3 of"):
        spans_to_test(EvaluateConfig(later.folder, span=1), later)


def test_files_say_what_they_stand_behind(trained, tmp_path, capsys):
    config = RecommendConfig(trained.run_dir, tmp_path / "recs.parquet", span=2)
    run_ranks(2, _recommend, config)
    digest = Dataset(trained.data).digest_until(2)
    wanted = {b"span": b"2", b"data": digest.encode(), b"strategy": b"imsr"}
    assert wanted.items() <= pq.read_schema(config.output).metadata.items()
    pytest.importorskip("faiss", reason="FAISS is not installed: pip install 'dist-imsr[export]'")
    output = tmp_path / "export"
    assert export(["--run_dir", str(trained.run_dir), "--output", str(output), "--span", "2"]) == 0
    assert "after span 2" in capsys.readouterr().out
    for name in ("items", "interests"):
        assert wanted.items() <= pq.read_schema(output / f"{name}.parquet").metadata.items()
    summary = json.loads((output / "export.json").read_text())
    assert (summary["span"], summary["data"], summary["strategy"]) == (2, digest, "imsr")


def test_data_may_grow_after_an_export_but_not_shrink(trained, tmp_path):
    for spans in (4, 5):
        data = write_dataset(tmp_path / str(spans), HISTORY, spans=spans)
        assert FinishedRun(trained.run_dir, data).resolve_span(None) == SPAN
    short = FinishedRun(trained.run_dir, write_dataset(tmp_path / "short", HISTORY, spans=3))
    with pytest.raises(ValueError, match=r"stands behind span 3, and .*short has 3 spans: name the run's with --data"):
        short.resolve_span(None)


def test_exports_of_older_versions_are_refused(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained.run_dir, folder)
    for path in (folder / "spans" / "span=3").iterdir():
        batch = pa.ipc.open_file(path.read_bytes()).get_batch(0)
        batch = batch.replace_schema_metadata({"ranks": "2", "data": "digest"})
        with pa.ipc.new_file(path, batch.schema) as file:
            file.write_batch(batch)
    assert main(["--run_dir", str(folder), "--output", str(tmp_path / "recs.parquet")]) == 2
    errors = capsys.readouterr().err
    assert "of another version of dist_imsr, which computed other scores: train again" in errors
    assert errors.count("\n") == 1
