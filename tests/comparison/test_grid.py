import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dist_imsr.comparison.config import CompareConfig, Row, Source, TuningConfig
from dist_imsr.comparison.grid import Experiment, Grid
from dist_imsr.comparison.jobs import Jobs
from dist_imsr.config import parse, resolve
from dist_imsr.training.config import TrainConfig
from tests.prepared import retire_before

CPU = torch.device("cpu")
PLAIN = {"fine_tuning": Row()}


def _with(name="imsr", bases=None, **row):
    return {"strategies": PLAIN | {name: Row(bases=bases, **row)}}


def _grid(config):
    return Grid(config, CPU)


def test_all_cells_in_order_with_their_configurations(place):
    rows = {"frozen": Row(), "rho 0": Row("imsr", set=["--strategy.imsr.rho=0"]), "alone": Row("life_long", ["mind"])}
    grid = _grid(place.compare(strategies=rows | PLAIN, bases=["comirec_sa", "comirec_dr"]))
    assert grid.experiments == [
        *(
            Experiment("drawn", base, row)
            for base in ("comirec_sa", "comirec_dr")
            for row in ("frozen", "rho 0", "fine_tuning")
        ),
        Experiment("drawn", "mind", "alone"),
    ]
    config = grid.resolved(grid.experiments[1], {"strategy.imsr.trimmer.project": False})
    assert (config.strategy.name, config.model.base, config.model.dim) == ("imsr", "comirec_sa", 8)
    assert (config.strategy.imsr.rho, config.strategy.imsr.trimmer.project) == (0.0, False)
    assert (config.data.path, config.training.export) == (place.data, "none")
    arguments = [
        *grid.arguments(grid.experiments[1], {"strategy.imsr.trimmer.project": False}),
        "--training.export=none",
        "--baselines=false",
    ]
    assert resolve(TrainConfig, [*arguments, f"--run_dir={config.run_dir}"]) == config


@pytest.mark.parametrize("name", ["ablation", "full", "growth", "training"])
def test_shipped_comparisons_are_possible(place, name, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    shipped = parse(CompareConfig, [f"--config=configs/compare_{name}.yaml", f"--output={place.output}"])
    data = {name: replace(source, path=place.data) for name, source in shipped.data.items()}
    rows = {entry.row for entry in _grid(replace(shipped, data=data)).experiments}
    assert rows == set(shipped.strategies)


@pytest.mark.parametrize(("name", "count"), [("ablation", 12), ("growth", 10)])
def test_each_row_is_another_variant(place, name, count, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    shipped = parse(CompareConfig, [f"--config=configs/compare_{name}.yaml", f"--output={place.output}"])
    grid = _grid(replace(shipped, data={"drawn": replace(shipped.data["taobao"], path=place.data)}))
    configs = {entry.row: grid.resolved(entry) for entry in grid.experiments}
    variants = {repr((config.model, config.strategy.imsr)) for config in configs.values()}
    assert {config.strategy.name for config in configs.values()} == {"imsr"}
    assert len(variants) == len(configs) == count


def test_the_letter_of_the_paper_is_one_row(place, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    shipped = parse(CompareConfig, ["--config=configs/compare_full.yaml", f"--output={place.output}"])
    grid = _grid(replace(shipped, data={"drawn": replace(shipped.data["taobao"], path=place.data)}))
    [row] = [grid.resolved(entry) for entry in grid.experiments if entry.row == "imsr_paper"]
    files = ["--config=configs/samples.yaml", "--config=configs/imsr_paper.yaml", "--run_dir=run"]
    letter = parse(TrainConfig, files)
    for section in ("model", "strategy", "batch", "catalogue", "training", "repeats"):
        own = replace(row.training, export="last") if section == "training" else getattr(row, section)
        assert own == getattr(letter, section)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"strategies": PLAIN | {"mine": Row()}}, r"strategies\.mine with .*strategy\.name"),
        ({"strategies": PLAIN, "bases": ["none"]}, r"strategies\.fine_tuning with none.*model\.base"),
        (_with(set=["--strategy.imsr.rho=-1"]), r"strategies\.imsr .*strategy\.imsr\.rho"),
        (_with(set=["--no.such=1"]), r"strategies\.imsr .*no\.such"),
        (_with(set=["strategy.imsr.rho"]), "expected --key=value"),
        (_with(set=["--seed=1"]), r"strategies\.imsr\.set: seed .*sets it itself"),
        (_with(set=["--batch.size=1"]), "batch.size cannot .*all rows share it"),
        (_with(set=["--batch={size: 1}"]), "batch cannot .*all rows share it"),
        (_with(set=["--batch.sizes=1"]), "batch.sizes cannot .*all rows share it"),
        (_with(set=["--eval.top+=9"]), "eval.top cannot .*all rows have the same tests"),
        (_with(set=["--training.incremental_epochs=1"]), "incremental_epochs cannot .*all rows share it"),
        (_with(set=["--strategy={name: ader}"]), "strategy cannot .*sets it itself"),
        (_with(set=["--config=other.yaml"]), "config cannot .*sets it itself"),
        (_with(set=["--import=a_module"]), "import cannot .*sets it itself"),
        (_with(bases=[]), r"strategies\.imsr\.bases"),
        (_with(baseline="none"), r"strategies\.imsr with - on drawn: baselines: "),
        (
            _with(baseline="popular", set=["--popular.spans=some"]),
            r"strategies\.imsr with - on drawn: .*popular\.spans",
        ),
        (_with(baseline="popular", set=["--eval.top=[9]"]), "eval.top cannot .*sets it itself"),
        (_with(baseline="popular", set=["--strategy.imsr.rho=0"]), r"strategies\.imsr with - .*strategy\.imsr"),
        (_with(baseline="item_knn", set=["--item_knn.max_items=9"]), r"strategies\.imsr with - .*max_items is 9"),
        ({"strategies": {"fine_tuning": Row(bases=["mind"])}}, "reference and tests"),
        ({"strategies": PLAIN, "top": 20}, r"data\.drawn: eval\.top"),
        ({"strategies": PLAIN, "cores": 9, "ranks": 9}, r"data\.drawn: 8 buckets"),
        (
            {"strategies": PLAIN, "tuning": TuningConfig(3, 3, keys={"fine_tuning": {"training.epochs": [1]}})},
            r"tuning\.spans: .*at most 2",
        ),
        (
            {"strategies": PLAIN, "tuning": TuningConfig(keys={"fine_tuning": {"training.patience": [1]}})},
            r"tuning\.keys\.fine_tuning: training\.patience cannot",
        ),
    ],
)
def test_impossible_cells_are_refused(place, keys, message):
    with pytest.raises(ValueError, match=message):
        _grid(place.compare(**keys))


def test_settings_may_be_compared(place):
    rows = PLAIN | {"patient": Row("imsr", set=["--training.patience=9", "--batch.negatives=7"], settings=True)}
    grid = _grid(place.compare(strategies=rows))
    [config] = [grid.resolved(one) for one in grid.experiments if one.row == "patient"]
    assert (config.training.patience, config.batch.negatives) == (9, 7)
    for key in ("seed=1", "eval.top=[5]", "eval.exclude_seen=true", "training.spans=1", "training.validation_users=9"):
        rows["imsr"] = Row(set=[f"--{key}"], settings=True)
        with pytest.raises(ValueError, match=r"cannot be set here: (all rows have the same tests|the comparison sets)"):
            _grid(place.compare(strategies=rows))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": Path("/nowhere")}, r"data\.drawn: data\.path: /nowhere holds no"),
        ({"config": Path("/nowhere")}, r"data\.drawn: config: '/nowhere'"),
        ({"config": Path(__file__)}, r"data\.drawn: .*test_grid\.py: "),
        ({"set": ["--model.base=mind"]}, r"data\.drawn: set: model\.base cannot"),
        ({"set": ["--training.spans=9"]}, r"data\.drawn: set: training\.spans"),
        ({"set": ["--batch.sizes=9"]}, r"data\.drawn: .*batch\.sizes"),
    ],
)
def test_impossible_data_are_refused(place, source, message):
    with pytest.raises(ValueError, match=message):
        _grid(place.compare(strategies=PLAIN, data={"drawn": replace(Source(place.settings, place.data), **source)}))


def test_retired_spans_are_refused(place, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(place.data, data)
    retire_before(data, 1)
    with pytest.raises(ValueError, match=r"this run would read span 0, but the rows before span 1 of .* were retired"):
        _grid(place._replace(data=data).compare(strategies=PLAIN))


def test_every_run_imports_what_the_comparison_imports(place, monkeypatch):
    (place.output.parent / "a_module_of_ours.py").write_text("")
    monkeypatch.chdir(place.output.parent)
    monkeypatch.setattr("sys.path", list(sys.path))
    grid = _grid(place.compare(strategies=PLAIN, imports=["a_module_of_ours"]))
    (experiment,) = grid.experiments
    assert "--import=a_module_of_ours" in grid.arguments(experiment, {})
    assert grid.resolved(experiment).imports == ["a_module_of_ours"]
    assert "a_module_of_ours" in sys.modules
    with pytest.raises(ValueError, match="import: absent_module: ModuleNotFoundError"):
        _grid(place.compare(strategies=PLAIN, imports=["absent_module"]))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--reference=imsr", "reference: 'imsr' is impossible here; expected one of strategies: fine_tuning"),
        ("--tests=[imsr]", "tests: 'imsr'"),
        ("--seeds=[1,1]", "seeds: [1, 1]"),
        ("--cores=1", "cores: 1 is impossible here; expected at least ranks (2)"),
        ("--tuning.budget=0", "tuning.budget"),
        ('--strategies={"fine_tuning":{"baseline":"popular","strategy":"imsr"}}', "strategies: strategy: 'imsr'"),
        ('--strategies={"fine_tuning":{"baseline":"popular","bases":["mind"]}}', "strategies: bases: ['mind']"),
        ('--tuning.keys={"imsr":{"a":[1]}}', "tuning.keys: 'imsr'"),
        ('--tuning.keys={"fine_tuning":{"a":[]}}', "tuning.keys.fine_tuning.a"),
        ("--strategies={}", "strategies"),
        ('--strategies={"a/b":{}, "fine_tuning":{}}', "without slashes"),
        ('--strategies={"fine_tuning":{"base":"mind"}}', "'base' is not accepted"),
        ("--no_such=1", "no_such"),
    ],
)
def test_wrong_keys_are_refused_by_name(tmp_path, capsys, argument, message):
    file = tmp_path / "compare.yaml"
    file.write_text("{output: out, data: {a: {config: b, path: c}}, strategies: {fine_tuning: {}}, ranks: 2, cores: 2}")
    with pytest.raises(SystemExit, match="2"):
        parse(CompareConfig, [f"--config={file}", argument])
    assert message in capsys.readouterr().err


def test_baselines_choose_by_themselves(place):
    with pytest.raises(ValueError, match=r"tuning\.keys: 'count' .* no baseline"):
        place.compare(
            strategies=PLAIN | {"count": Row(baseline="own_history")},
            tuning=TuningConfig(2, 1, keys={"count": {"own_history.decays": [[0.9]]}}),
        )


def test_a_baseline_has_one_run_with_the_tests_of_its_data(place):
    rows = {"counts": Row(baseline="popular", set=["--popular.spans=all"]), **PLAIN}
    source = Source(place.settings, place.data, ["--eval.top=[5,7]", "--eval.max_users=9", "--training.spans=1"])
    grid = _grid(place.compare(strategies=rows, bases=["comirec_dr", "mind"], data={"drawn": source}))
    assert [(one.base, one.row) for one in grid.experiments] == [
        *(("comirec_dr", "fine_tuning"), ("mind", "fine_tuning"), ("-", "counts"))
    ]
    config = grid.baseline(grid.experiments[-1])
    assert (config.data.path, config.baselines, config.spans) == (place.data, ["popular"], 1)
    assert (config.eval.top, config.eval.max_users, config.popular.spans) == ([5, 7], 9, "all")


def test_rows_with_the_same_keys_for_pretraining_share_it(place):
    rows = {
        **PLAIN,
        "imsr": Row(set=["--strategy.imsr.rho=0", "--catalogue.incremental_learning_rate=1"]),
        "slow": Row("imsr", set=["--catalogue.learning_rate=0.001"]),
        "full_retraining": Row(),
    }
    grid, jobs = _grid(place.compare(strategies=rows)), Jobs(place.output, keep=False)
    made = {}
    for experiment in grid.experiments:
        arguments, dataset = grid.arguments(experiment, {}), grid.datasets["drawn"]
        made[experiment.row] = jobs.job(
            experiment.path, grid.resolved(experiment), arguments, dataset, str(experiment.path)
        )
    needs = {row: job.needs for row, job in made.items()}
    assert needs["fine_tuning"] is needs["imsr"] is needs["full_retraining"] is not needs["slow"]
    assert needs["slow"].config.catalogue.learning_rate == 0.001
    assert needs["imsr"].config.strategy.name == "frozen"
    assert needs["imsr"].config.training.spans == 0
    assert made["imsr"].config.resume == str(needs["imsr"].pretrained)
