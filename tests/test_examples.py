"""The examples of a strategy and of a base model outside of the package, through the commands that users type."""

import ast
import functools
import json
import os
import signal
import sys

import pyarrow.parquet as pq
import pytest
import yaml

from dist_imsr.comparison.compare import compare
from dist_imsr.comparison.config import CompareConfig
from dist_imsr.config import parse
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.model.extractors import BASE_MODELS
from dist_imsr.strategies import STRATEGIES
from dist_imsr.training.checkpoint import newest_first
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.run import train
from launch import evaluate, plan, recommend
from tests.commands import ROOT, start_ranks
from tests.prepared import drawn_history, write_dataset
from tests.runs import timeless

STRATEGY, BASE = "examples.my_strategy", "examples.my_extractor"
EXAMPLES = [ROOT / f"{name.replace('.', '/')}.py" for name in (STRATEGY, BASE)]
SMALL = [
    *("--model.dim=8", "--batch.size=16", "--batch.negatives=20", "--eval.top=[5]", "--checkpoint.every_steps=2"),
    *("--training.epochs=1", "--training.incremental_epochs=2"),
]
ANCHORED = ["--import", STRATEGY, "--strategy.name", "anchored", "--strategy.anchored.weight", "0.5"]
POOLING = ["--import", BASE, "--model.base", "pooling", "--model.pooling.temperature", "0.5"]
RUNS = {
    "anchored": (ANCHORED, "strategy.anchored.weight", STRATEGY),
    "pooling-imsr": ([*POOLING, "--strategy.name=imsr"], "model.pooling.temperature", BASE),
}


@pytest.fixture(autouse=True)
def _forget_examples():
    """Commands that run in this process register the examples, which no other test must see."""
    registries = [(registry, dict(registry._entries)) for registry in (STRATEGIES, BASE_MODELS)]
    path = list(sys.path)
    yield
    sys.path[:] = path
    for registry, entries in registries:
        registry._entries = entries
    for name in (STRATEGY, BASE):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), drawn_history(users=60, items=80, spans=4, longest=12))


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The run of a name, which is trained once."""

    @functools.cache
    def trained(name):
        run_dir = tmp_path_factory.mktemp("undisturbed") / name
        statuses, errors = _train(data, run_dir, *RUNS[name][0])
        assert statuses == [0, 0], errors
        return run_dir

    return trained


def _train(data, run_dir, *arguments, **options):
    """Runs the command on ranks; returns their exit statuses, and their standard errors in one text."""
    ranks = start_ranks(run_dir.parent, f"--data.path={data}", f"--run_dir={run_dir}", *SMALL, *arguments, **options)
    errors = [rank.communicate(timeout=60)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], "".join(errors)


def _metrics(run_dir):
    return timeless([json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()])


def _kill_rank_1_in_span_1():
    train_step, steps = Recommender.train_step, []

    def train_or_die(self, batch, *arguments, **keywords):
        steps.append(batch.span)
        if steps.count(1) == 6 and self.topology.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(self, batch, *arguments, **keywords)

    Recommender.train_step = train_or_die


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_resumes_to_the_same_numbers(data, undisturbed, tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(ROOT)
    arguments, key, module = RUNS[name]
    run_dir, whole = tmp_path / "run", undisturbed(name)
    statuses, _ = _train(data, run_dir, *arguments, before=_kill_rank_1_in_span_1)
    assert statuses == [1, -signal.SIGKILL]
    newest = newest_first(run_dir / "checkpoints")[0]
    assert "span=01-epoch=000-step=000000" < newest.name < "span=02"
    statuses, errors = _train(data, run_dir, *arguments)
    assert statuses == [0, 0], errors
    assert str(newest) in errors
    lines = _metrics(run_dir)
    assert lines == _metrics(whole)
    assert [line["span"] for line in lines] == [1, 2]
    assert all(line["interests_created"] for line in lines) == (name == "pooling-imsr")
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["imports"] == [module]
    section, component, option = key.split(".")
    assert config[section][component][option] == 0.5
    before = {path: path.stat().st_mtime_ns for path in run_dir.iterdir()}
    argv = [f"--data.path={data}", f"--run_dir={run_dir}", *SMALL, *arguments, f"--{key}=0.75"]
    capsys.readouterr()
    assert train(parse(TrainConfig, argv)) == 2
    errors = capsys.readouterr().err
    assert f"{key} was 0.5 and is 0.75. " in errors
    assert errors.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in run_dir.iterdir()} == before


def test_a_comparison_has_rows_of_a_registered_strategy_on_a_registered_base_model(data, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "train.yaml").write_text(
        "model: {dim: 8}\nbatch: {size: 16, negatives: 20}\ntraining: {epochs: 2, incremental_epochs: 2}\n"
        "eval: {top: [5]}\n"
    )
    rows = {
        "fine_tuning": {},
        "anchored": {"set": ["--strategy.anchored.weight=0.5"]},
        "unanchored": {"strategy": "anchored", "set": ["--strategy.anchored.weight=0"]},
        "cooler": {"strategy": "fine_tuning", "set": ["--model.pooling.temperature=0.1"]},
    }
    comparison = {
        "data": {"drawn": {"config": str(tmp_path / "train.yaml"), "path": str(data)}},
        "strategies": rows,
        "bases": ["pooling"],
        "seeds": [0],
        "top": 5,
        "cores": 2,
    }
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(comparison))
    arguments = [f"--config={tmp_path}/compare.yaml", f"--output={tmp_path}/out", "--import", STRATEGY, BASE]
    assert compare(parse(CompareConfig, arguments)) == 0
    tables = (tmp_path / "out" / "tables.md").read_text()
    summary = pq.read_table(tmp_path / "out" / "summary.parquet").to_pylist()
    assert {(row["base"], row["strategy"]) for row in summary} == {("pooling", row) for row in rows}
    # The rows of one temperature share a pre-training.
    assert len(list((tmp_path / "out" / "pretraining").glob("drawn/pooling/seed=0-*"))) == 2
    for row in rows:
        assert f"| pooling | {row} |" in tables
    losses = {
        row: [line["loss"] for line in _metrics(tmp_path / "out" / "cells" / "drawn" / "pooling" / row / "seed=0")]
        for row in rows
    }
    assert losses["unanchored"] == losses["fine_tuning"]
    for row in ("anchored", "cooler"):
        assert all(one != other for one, other in zip(losses[row], losses["fine_tuning"], strict=True))


def test_a_finished_run_imports_its_modules_again(undisturbed, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    run_dir = undisturbed("pooling-imsr")
    assert "pooling" not in BASE_MODELS
    tested, lists = tmp_path / "tested.jsonl", tmp_path / "lists.parquet"
    assert evaluate.main([f"--run_dir={run_dir}", "--eval.top=[5]", "--eval.beyond=false", f"--json={tested}"]) == 0
    line = _metrics(run_dir)[-1]
    row = json.loads(tested.read_text().splitlines()[-1])
    assert {name: row[name] for name in ("span", "users")} == {name: line[name] for name in ("span", "users")}
    assert row["hr@5"] == pytest.approx(line["hr@5"])
    assert recommend.main([f"--run_dir={run_dir}", f"--output={lists}", "--top=3"]) == 0
    assert set(pq.read_table(lists)["rank"].to_pylist()) == {1, 2, 3}


def test_a_run_whose_module_is_gone_is_refused_in_one_line(undisturbed, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    text = (undisturbed("pooling-imsr") / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace(BASE, "examples.gone"))
    assert recommend.main([f"--run_dir={folder}", f"--output={tmp_path}/lists.parquet"]) == 2
    errors = capsys.readouterr().err
    assert "import: examples.gone: ModuleNotFoundError" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("by_file", [False, True])
def test_a_registered_base_model_and_strategy_are_planned(tmp_path, monkeypatch, by_file):
    monkeypatch.chdir(ROOT)
    (tmp_path / "plan.yaml").write_text(f"imports: [{STRATEGY}, {BASE}]\n")
    modules = [f"--config={tmp_path}/plan.yaml"] if by_file else ["--import", STRATEGY, BASE]
    keys = ["--model.base=pooling", "--strategy.name=anchored", "--strategy.anchored.weight=0.5"]
    sizes = ["--items=100000", "--users=10000", "--dim=16", "--gpus_per_node=2", f"--dry_run={str(by_file).lower()}"]
    assert plan.main([*modules, *keys, *sizes, f"--json={tmp_path}/plan.json"]) == 0
    planned = json.loads((tmp_path / "plan.json").read_text())["config"]
    assert planned["imports"] == [STRATEGY, BASE]
    assert planned["strategy"]["anchored"] == {"weight": 0.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--import", "no.such.module"], "import: no.such.module: ModuleNotFoundError: No module named 'no'"),
        (["--import", "raising_example"], "import: raising_example: RuntimeError: two lines"),
        (["--strategy.name", "anchored"], "strategy.name: 'anchored' is impossible here; expected one of "),
        (["--model.base", "pooling"], "model.base: 'pooling' is impossible here; expected one of "),
        ([*ANCHORED, "--strategy.anchored.wieght", "1"], "strategy.anchored.wieght"),
        ([*ANCHORED, "--strategy.anchored.weight", "heavy"], "strategy.anchored.weight"),
        ([*ANCHORED, "--strategy.anchored.weight", "-1"], "strategy.anchored.weight: -1.0 is impossible here"),
        ([*POOLING, "--model.pooling.temperature", "0"], "model.pooling.temperature: 0.0 is impossible here"),
    ],
)
def test_mistakes_are_refused_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "raising_example.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="2"):
        parse(TrainConfig, [f"--data.path={tmp_path}", f"--run_dir={tmp_path}/run", *arguments])
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_a_module_that_is_not_there_ends_all_ranks_with_one_line(data, tmp_path):
    statuses, errors = _train(data, tmp_path / "run", "--import", "no.such.module")
    assert statuses == [2, 2]
    assert errors == (
        "train.py: import: no.such.module: ModuleNotFoundError: No module named 'no' (--help lists the keys)\n"
    )
    assert not (tmp_path / "run").exists()


def _private(name):
    return name.startswith("_") and not name.endswith("__")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short_documented_and_use_public_names_only(path):
    text = path.read_text()
    assert text.count("\n") < 60
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level
            assert not any(map(_private, (*node.module.split("."), *(alias.name for alias in node.names))))
        if isinstance(node, ast.Import):
            assert not any(_private(part) for alias in node.names for part in alias.name.split("."))
        if isinstance(node, ast.Attribute):
            assert not _private(node.attr)
        if isinstance(node, (ast.Module, ast.ClassDef)):
            assert ast.get_docstring(node)
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
