import json
from dataclasses import replace
from pathlib import Path

import pytest

from dist_imsr.benchmarks.span import SpanBench
from launch.bench import main
from tests.prepared import drawn_history, write_dataset

SMALL = """
model: {dim: 8, interests: 3}
strategy: {imsr: {detector: {measure: divergence, rule: mean, c1: 0.02}}}
batch: {size: 16, max_history: 10, max_targets: 3, negatives: 20, eval_size: 16}
training: {epochs: 1, incremental_epochs: 2, patience: 0}
eval: {top: [5]}
"""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    data = write_dataset(folder, drawn_history(users=60, items=80, spans=4, longest=12))
    train = folder / "train.yaml"
    train.write_text(SMALL)
    return ["--data", str(data), "--train", f"[{train}]", "--ranks", "1", "--folder", str(folder)]


def test_figures(arguments, tmp_path, capsys):
    path = tmp_path / "figures.json"
    chosen = ["--spans", "2", "--repeats", "2", "--bases", "[comirec_dr]", "--exact", "--set", "[--seed=3]"]
    assert main(["span", *arguments, *chosen, "--json", str(path)]) == 0
    figures = {row["figure"]: row for row in json.loads(path.read_text())}
    for strategy in ("imsr_comirec_dr", "fine_tuning_comirec_dr"):
        names = ("train_seconds", "span_seconds", "users_per_second", "peak_bytes_over_plan", "share_of_training")
        for name in names:
            assert figures[f"{strategy}_{name}"]["runs"] == 4  # of two spans, twice
            assert figures[f"{strategy}_{name}"]["min"] > 0
        shares = [row["mean"] for name, row in figures.items() if name.startswith(f"{strategy}_share_of_")]
        assert 0.8 < sum(shares) <= 1 + 1e-9
        whole = figures[f"{strategy}_span_seconds"]
        assert whole["mean"] > figures[f"{strategy}_train_seconds"]["mean"]
        assert [line["span"] for line in whole["phases"]] == [1, 2, 1, 2]
        assert [line["span"] for line in whole["exact_phases"]] == [1, 2]
        memory = figures[f"{strategy}_peak_bytes_over_plan"]["memory"]
        assert {one["phase"] for one in memory if one["planned_bytes"]} >= {"training", "admitting", "write-back"}
    ours, theirs = (figures[f"{name}_comirec_dr_train_seconds"] for name in ("imsr", "fine_tuning"))
    assert ours["paper_seconds"]["seconds"][0] == 941
    assert theirs["paper_seconds"]["device"] == "RTX 2080 Ti"
    assert {line["seed"] for line in ours["metrics"]} == {3}
    assert figures["imsr_over_fine_tuning_seconds_comirec_dr"]["runs"] == 4
    phases = {name: figures[f"{name}_comirec_dr_span_seconds"]["phases"] for name in ("imsr", "fine_tuning")}
    assert all("detector" in line["seconds"] for line in phases["imsr"])
    assert not any("detector" in line["seconds"] for line in phases["fine_tuning"])
    assert "imsr_over_fine_tuning_seconds_comirec_dr" in capsys.readouterr().out


def test_a_device_has_settings_of_its_own(arguments, monkeypatch):
    monkeypatch.setattr("dist_imsr.devices.device_count", lambda: 1)
    monkeypatch.chdir(Path(__file__).parents[2])
    host, cuda = (SpanBench(data=Path(arguments[1]), device=device, ranks=1) for device in ("cpu", "cuda"))
    assert [path.name for path in host.train] == ["scale_training.yaml"]
    assert [path.name for path in cuda.train] == ["scale_training.yaml", "cuda_taobao.yaml"]
    cuda = replace(cuda, set_base={"comirec_sa": ["--strategy.imsr.detector.c1=0.15"]})
    there, here = (options.config("comirec_sa", "imsr", Path("run")) for options in (cuda, host))
    assert there.batch.size > here.batch.size
    assert there.catalogue == here.catalogue
    assert there.strategy.imsr.detector.c1 == 0.15 != here.strategy.imsr.detector.c1


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (["--data", "missing"], "data"),
        (["--train", "[missing.yaml]"], "train"),
        (["--spans", "3"], "training.spans"),
        (["--spans", "0"], "spans"),
        (["--strategies", "[guessing]"], "strategy.name"),
        (["--strategies", "[]"], "strategies"),
        (["--bases", "[gru]"], "model.base"),
        (["--set", "[--batch.size=0]"], "batch.size"),
        (["--set", "[--catalogue.optimizer=adam]"], "catalogue.optimizer"),
        (["--ranks", "9"], "ranks"),
        (["--json", "missing/figures.json"], "json"),
    ],
)
def test_impossible_options_are_refused_in_one_line(arguments, more, key, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["span", *arguments, *more])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert errors.count("\n") == 1
    assert key in errors
