import json
from pathlib import Path

import pytest

from dist_imsr.benchmarks import BENCHMARKS, Benchmark
from dist_imsr.benchmarks.all import AllBench, select_parts
from dist_imsr.benchmarks.ceilings import COPY, CeilingsBench, copy_bound
from dist_imsr.benchmarks.report import Figure
from dist_imsr.benchmarks.train import TrainBench
from launch.bench import main
from tests.benchmarks.test_span import SMALL
from tests.prepared import drawn_history, write_dataset

ON_HOST = ["--device", "cpu", "--ranks", "1", "--quick"]


def _ceilings(options):
    return [Figure(COPY, "bytes/s", [100.0], {})]


@pytest.fixture
def measured(monkeypatch):
    """Benchmarks that take no time; their options, by name."""
    seen = {}

    def stand_in(name, figures):
        def measure(options):
            seen[name] = options
            return figures() if callable(figures) else figures

        monkeypatch.setitem(BENCHMARKS, name, BENCHMARKS[name]._replace(measure=measure))

    for name, one in list(BENCHMARKS.items()):
        if one.device_types:
            stand_in(name, [Figure(f"{name} speed", "s", [4.0], {}, copy_bound(200))])
    stand_in("ceilings", [Figure(COPY, "bytes/s", [100.0], {})])
    seen["stand_in"] = stand_in
    return seen


def test_all_benchmarks_in_one_run(tmp_path, capsys):
    data = write_dataset(tmp_path, drawn_history(users=60, items=80, spans=4, longest=12))
    (tmp_path / "train.yaml").write_text(SMALL)
    span = ["--span.data", str(data), f"--span.train=[{tmp_path / 'train.yaml'}]", f"--span.folder={tmp_path}"]
    path = tmp_path / "all.json"
    assert main(["all", *ON_HOST, "--json", str(path), *span, "--checkpoint.folder", str(tmp_path)]) == 0
    report = json.loads(path.read_text())
    assert {row["benchmark"] for row in report["figures"]} == {
        name for name, one in BENCHMARKS.items() if "cpu" in one.device_types
    }
    assert report["failed"] == []
    assert report["left_out"] == {}
    assert set(report["seconds"]) == {row["benchmark"] for row in report["figures"]}
    assert report["device"] == report["host"]["processor"]
    assert report["versions"]["torch"]
    assert report["command"].startswith("python launch/bench.py all --device cpu")
    with_ceiling = {row["figure"]: row["ceiling"] for row in report["figures"] if "ceiling" in row}
    assert with_ceiling["users_per_second"]["unit"] == "users/s"
    assert with_ceiling["seconds_a_save"]["figure"] == "seconds_a_plain_write"
    assert 0 < with_ceiling["ranker_users_per_second"]["share"] < 1
    assert 0 < with_ceiling["imsr_comirec_sa_train_seconds"]["share"] < 1
    assert "seconds_an_expand" in with_ceiling
    assert "imsr_comirec_dr_train_seconds" in capsys.readouterr().out


def test_keys_of_parts_and_shared_keys(measured, tmp_path):
    own = ["--rank.users", "77", "--strategies.drift.users=90", "--train.steps=3"]
    assert main(["all", *ON_HOST, "--threads", "2", *own, "--json", str(tmp_path / "all.json")]) == 0
    assert list(measured)[1] == "ceilings"
    assert (measured["rank"].users, measured["rank"].ranks, measured["rank"].threads) == (77, 1, 2)
    assert measured["strategies"].drift.users == 90
    assert measured["train"].steps == 3
    assert measured["train"].batch == 32  # of --quick
    assert "span" not in measured
    report = json.loads((tmp_path / "all.json").read_text())
    assert report["left_out"] == {"span": "--span.data was not given"}
    speeds = [row for row in report["figures"] if row["figure"].endswith("speed")]
    assert {row["ceiling"]["share"] for row in speeds} == {0.5}


def test_parts_can_be_chosen(measured, tmp_path):
    assert main(["all", *ON_HOST, "--parts", "[store]", "--json", str(tmp_path / "all.json")]) == 0
    assert list(measured)[1:] == ["ceilings", "store"]


def test_a_failure_is_reported_and_does_not_stop_the_others(measured, tmp_path, capsys):
    def fail():
        raise RuntimeError("rank 0 of 1 failed:\nTraceback ...\nRuntimeError: out of memory")

    measured["stand_in"]("train", fail)
    path = tmp_path / "all.json"
    assert main(["all", *ON_HOST, "--json", str(path)]) == 1
    report = json.loads(path.read_text())
    assert report["failed"] == [{"benchmark": "train", "reason": "RuntimeError: out of memory"}]
    assert {row["benchmark"] for row in report["figures"]} >= {"ceilings", "rank", "store", "checkpoint", "strategies"}
    assert "train failed: RuntimeError: out of memory" in capsys.readouterr().err


def test_figures_before_an_interruption_are_kept(measured, tmp_path, capsys):
    def stop():
        raise KeyboardInterrupt

    measured["stand_in"]("rank", stop)
    path = tmp_path / "all.json"
    assert main(["all", *ON_HOST, "--json", str(path)]) == 130
    report = json.loads(path.read_text())
    assert [row["benchmark"] for row in report["figures"]] == ["ceilings", "train"]
    assert report["interrupted"] == "rank"
    assert "interrupted in rank" in capsys.readouterr().err


def test_benchmarks_of_another_device_are_not_run(measured, monkeypatch, tmp_path):
    monkeypatch.setitem(BENCHMARKS, "kernels", Benchmark(CeilingsBench, _ceilings, ("cuda",)))
    assert main(["all", *ON_HOST, "--json", str(tmp_path / "all.json")]) == 0
    assert "kernels" not in json.loads((tmp_path / "all.json").read_text())["seconds"]


def test_arguments_on_cuda_come_before_those_of_the_command_line(monkeypatch):
    monkeypatch.setattr("dist_imsr.devices.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    options = AllBench(json=Path("all.json"), device="cuda")
    arguments = {name: [] for name in BENCHMARKS} | {"train": ["--steps=7"]}
    parts, _ = select_parts(options, arguments)
    assert isinstance(parts["train"], TrainBench)
    assert (parts["train"].batch, parts["train"].steps, parts["train"].device) == (8192, 7, "cuda")
    assert (parts["rank"].users, parts["rank"].items) == (10_000, 1_700_000)
    assert parts["kernel"].device == "cuda"


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--parts", "[guess]"], "parts"),
        (["--rank.users", "0"], "rank: users"),
        (["--rank.usrs", "3"], "rank: "),
        (["--rnk.users", "3"], "rnk.users"),
        (["--rank.ranks", "2"], "rank.ranks"),
        (["--train.json", "some.json"], "train.json"),
        (["--parts", "[store]", "--rank.users", "3"], "rank.users"),
        (["--parts", "[span]"], "span"),
        (["--prepare.buckets", "4"], "prepare.buckets"),
        (["--threads", "0"], "threads"),
        (["--json", "missing/all.json"], "json"),
    ],
)
def test_impossible_options_are_refused_in_one_line(arguments, key, tmp_path, capsys):
    try:
        status = main(["all", *ON_HOST, "--json", str(tmp_path / "all.json"), *arguments])
    except SystemExit as stopped:
        status = stopped.code
    errors = capsys.readouterr().err
    assert status == 2
    assert errors.count("\n") == 1
    assert key in errors
    assert not (tmp_path / "all.json").exists()


def test_the_file_is_required(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["all", *ON_HOST])
    assert stopped.value.code == 2
    assert "json" in capsys.readouterr().err
