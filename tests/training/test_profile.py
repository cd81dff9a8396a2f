import gzip
import json
import shutil
from dataclasses import replace

import pytest
import torch

from dist_imsr.config import resolve
from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.phases import clock
from dist_imsr.strategies import StrategyConfig
from dist_imsr.training.checkpoint import CheckpointConfig, newest_first
from dist_imsr.training.config import TrainConfig, TrainingConfig
from dist_imsr.training.profile import FOLDER, Profile, keep_before, read, show, table
from tests.prepared import drawn_history, write_dataset
from tests.ranks import run_ranks
from tests.runs import run

KINDS = ("peak", "own", "files", "device")
STEP = ("data", "interests", "all-to-all", "lookup", "routing", "loss", "backward", "optimizer", "losses", "events")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), drawn_history(users=60, items=80, spans=4, longest=12))


@pytest.fixture(scope="module")
def config(folder, tmp_path_factory):
    return TrainConfig(
        DataConfig(folder),
        tmp_path_factory.mktemp("runs") / "plain",
        model=ModelConfig(dim=8, interests=3),
        strategy=StrategyConfig("imsr"),
        batch=BatchConfig(size=8, max_history=10, max_targets=3, negatives=20, eval_size=16),
        training=TrainingConfig(epochs=2, incremental_epochs=2, patience=1),
        eval=EvalConfig([5]),
        checkpoint=CheckpointConfig(every_steps=2, keep_last=1000),
    )


@pytest.fixture(scope="module")
def plain(config):
    return run_ranks(2, run, config)


def _outer(phases):
    return {path: value for path, value in phases.items() if "/" not in path}


def test_a_full_disk_costs_only_the_phases_of_its_span(config, tmp_path, monkeypatch, caplog):
    profiled = Profile(tmp_path, Topology(0, 1, 1, torch.device("cpu")), detailed=False)
    monkeypatch.setattr(Topology, "gather_jagged", lambda self, columns: [columns])

    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    with profiled.measure_span(0, resumed=False):
        pass
    with monkeypatch.context() as patch:
        patch.setattr("dist_imsr.training.profile.write_whole", full)
        with profiled.measure_span(1, resumed=False):
            pass
    assert "the phases of span 1: not written: [Errno 28]" in caplog.text
    with profiled.measure_span(2, resumed=False):
        pass
    assert [line["span"] for line in read(tmp_path)] == [0, 2]


def test_every_span_has_a_line_whose_phases_add_up(config, plain):
    lines = read(config.run_dir)
    assert [(line["span"], line["resumed"]) for line in lines] == [(0, False), (1, False), (2, False)]
    later = {"detector", "trimmer", "test", "recording"}
    always = {"opening", "growing", "admitting", "training", "validation", "write-back", "checkpoint"}
    for line in lines:
        seconds, total = line["seconds"], line["total_seconds"]
        assert _outer(seconds).keys() == set(line["memory"])
        assert set(line["memory"]) >= always
        assert set(line["memory"]) & later == (later if line["span"] else set())
        assert {f"training/{name}" for name in STEP} <= seconds.keys()
        assert sum(phase["mean"] for phase in _outer(seconds).values()) <= total * (1 + 1e-9)
        assert sum(phase["max"] for phase in _outer(seconds).values()) >= total * (1 - 1e-9)
        for path, value in _outer(seconds).items():
            parts = [part["mean"] for inner, part in seconds.items() if inner.rpartition("/")[0] == path]
            assert sum(parts) <= value["mean"] * (1 + 1e-9), path
        for memory in line["memory"].values():
            assert tuple(memory) == KINDS
            assert all(len(memory[kind]) == 2 for kind in KINDS)  # ranks
        peaks = zip(*(memory["peak"] for memory in line["memory"].values()), strict=True)
        assert line["peak_bytes"] == sum(map(max, peaks)) > line["own_bytes"] > 0
        assert line["device_bytes"] == 0


def test_profiling_changes_no_numbers_and_leaves_small_traces(config, plain):
    traced = replace(config, run_dir=config.run_dir.with_name("traced"), profile=True)
    assert run_ranks(2, run, traced) == plain
    assert not (config.run_dir / FOLDER).exists()
    traces = sorted((traced.run_dir / FOLDER).iterdir())
    assert [path.name for path in traces] == [
        f"span={span:02d}-rank={rank:04d}.json.gz" for span in range(3) for rank in range(2)
    ]
    for path in traces:
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
        assert sum(name.startswith("ProfilerStep#") for name in names) in range(1, 4)
        assert {"training/routing", "training/lookup", "training/backward"} <= set(names)
        assert len(events) < 20_000


def test_a_resumed_run_has_one_line_for_each_span(config, plain):
    again = replace(config, run_dir=config.run_dir.with_name("again"))
    shutil.copytree(config.run_dir, again.run_dir)
    for path in newest_first(again.run_dir / "checkpoints"):
        if path.name > "span=01-epoch=001-step=000000":
            shutil.rmtree(path)
    assert run_ranks(2, run, again) == plain
    before, lines = read(config.run_dir), read(again.run_dir)
    assert lines[0] == before[0]
    assert [(line["span"], line["resumed"]) for line in lines] == [(0, False), (1, True), (2, False)]
    keep_before(again.run_dir, 1)
    assert read(again.run_dir) == before[:1]


def test_the_table_has_the_longest_phases_first(tmp_path):
    def line(span, **seconds):
        paths = {name.replace("_", "/"): {"mean": value, "max": value} for name, value in seconds.items()}
        return {"span": span, "resumed": span == 1, "total_seconds": 9.0, "peak_bytes": 3 << 30, "seconds": paths}

    sheet = table([line(0, test=1, training=2, training_data=0.5), line(1, training=3, training_lookup=2)], "run")
    assert sheet.columns == ["phase", "span 0", "span 1 (resumed)"]
    assert sheet.rows == [
        ["training", "2.00", "3.00"],
        ["· lookup", "-", "2.00"],
        ["· data", "0.50", "-"],
        ["test", "1.00", "-"],
        ["total", "9.00", "9.00"],
        ["peak memory, MiB, all ranks", "3,072", "3,072"],
    ]


def test_the_table_is_printed_and_written(tmp_path, capsys):
    show(tmp_path)
    assert "peak memory" in capsys.readouterr().out
    assert "peak memory" in (tmp_path / FOLDER / "phases.md").read_text()


def test_a_span_is_traced_once_and_an_early_end_leaves_no_trace(tmp_path):
    profile = Profile(tmp_path, Topology(0, 1, 1, torch.device("cpu")), True)
    steps = profile.trace_steps(iter(range(20)), 0, 20)
    assert next(steps) == 0
    steps.close()
    assert clock.trace is None
    assert list(profile.trace_steps(iter(range(20)), 0, 20)) == list(range(20))
    assert list((tmp_path / FOLDER).iterdir()) == []
    for steps in (0, 1, 2):
        assert list(profile.trace_steps(iter(range(steps)), 1, steps)) == list(range(steps))
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["span=01-rank=0000.json.gz"]


@pytest.mark.parametrize("switch", [["--profile"], ["--profile", "true"]])
def test_from_the_command_line(tmp_path, switch):
    arguments = ["--data.path", str(tmp_path), "--run_dir", str(tmp_path)]
    assert resolve(TrainConfig, [*arguments, *switch]).profile
    assert not resolve(TrainConfig, arguments).profile
