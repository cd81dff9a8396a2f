import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.plan import main

SHIPPED = Path(__file__).parents[2]


def _planned(tmp_path, *arguments):
    path = tmp_path / "plan.json"
    assert main([*arguments, f"--json={path}", "--dry_run=false"]) == 0
    return json.loads(path.read_text())


@pytest.mark.parametrize("ranks", [1, 8])
def test_the_papers_taobao(tmp_path, capsys, ranks):
    plan = _planned(tmp_path, f"--config={SHIPPED}/configs/plan_taobao.yaml", f"--gpus_per_node={ranks}")
    assert len(plan["sharding"]["shards"]) == ranks
    first, *_, last = plan["spans"]
    assert last["items"] == 1_708_530
    assert first["interest_store_bytes"] * ranks == pytest.approx(976_779 * (4 * (64 * 4 + 2) + 8), rel=1e-3)
    assert last["interest_store_bytes"] > first["interest_store_bytes"]
    table = plan["spans"][-1]["capacity"] * (68 + 1) * 4  # d and a bias, with row-wise Adagrad's one number
    assert last["table_bytes"] * ranks == pytest.approx(table, rel=1e-3)
    assert (plan["steps"][0]["links"]["embeddings"]["intra"] > 0) == (ranks > 1)
    output = capsys.readouterr().out
    for name in (
        "item table",
        "optimizer state",
        "interest store",
        "activations",
        "what binds",
        "users alone may grow",
    ):
        assert name in output
    assert ("embeddings" in output) == (ranks > 1)


def test_two_billion_items_on_512_gpus(tmp_path, capsys):
    plan = _planned(tmp_path, f"--config={SHIPPED}/configs/plan_billions.yaml")
    assert len(plan["sharding"]["shards"]) == 512
    assert plan["config"]["nodes"] * plan["config"]["gpus_per_node"] == 512
    for step in plan["steps"]:
        assert step["links"]["embeddings"]["inter"] > 50 * step["links"]["embeddings"]["intra"] > 0
        assert step["total_seconds"] == pytest.approx(sum(step["seconds"].values()))
    assert [limit["key"] for limit in plan["limits"]] == ["items", "users", "model.interests"]
    assert "--buckets 512" in capsys.readouterr().out


def test_a_sample_of_users_is_tested_in_its_part_of_the_time(tmp_path):
    config = f"--config={SHIPPED}/configs/plan_taobao.yaml"
    whole, sampled = (_planned(tmp_path, config, *more) for more in ((), ("--eval.max_users=1000",)))
    for one, other in zip(whole["span_seconds"][1:], sampled["span_seconds"][1:], strict=True):
        assert other["testing"] < 0.1 * one["testing"]
        assert other["training"] == one["training"]


def test_the_command_of_the_documentation_dry_run_included():
    line = "--items 2000000000 --users 500000000 --dim 64 --nodes 64 --gpus_per_node 8"
    ran = subprocess.run(
        [sys.executable, "launch/plan.py", *line.split()],
        capture_output=True,
        text=True,
        cwd=SHIPPED,
    )
    assert ran.returncode == 0, ran.stderr
    assert "one step of rank 0 of 512" in ran.stdout
    assert "Traceback" not in ran.stderr


def test_a_plan_that_does_not_fit_is_refused_in_one_line(capsys):
    assert main(["--items=2000000000", "--users=500000000", "--dry_run=false"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("plan.py: does not fit: device memory: ")
    assert "it would fit with --nodes " in output.err


def test_rows_that_a_budget_sends_to_the_host_are_refused(capsys):
    assert main(["--gpus_per_node=1", "--catalogue.device_memory=100", "--dry_run=false"]) == 2
    assert "TorchRec's planner" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("--items=0", "items"),
        ("--dim=6", "dim"),
        ("--nodes=-1", "nodes"),
        ("--nodes=70000", "nodes"),
        ("--gpu=abacus", "gpu"),
        ("--reserve=1", "reserve"),
        ("--spans=40000", "spans"),
        ("--load.active=0", "load.active"),
        ("--load.new_items=0.5", "load.new_items"),
        ("--hardware.memory=0", "hardware.memory"),
        ("--hardware.link_efficiency=1.5", "hardware.link_efficiency"),
        ("--model.base=mimn", "strategy.name"),
        ("--catalogue.headroom=-1", "catalogue.headroom"),
        ("--json=/nowhere/plan.json", "json"),
        ("--unheard=1", "unheard"),
    ],
)
def test_impossible_values_are_refused_by_name(argument, key, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([argument])
    assert exit_.value.code == 2
    assert key in capsys.readouterr().err


def test_adam_is_refused_on_the_cpu(capsys):
    with pytest.raises(SystemExit):
        main(["--gpu=cpu", "--catalogue.optimizer=adam"])
    assert "catalogue.optimizer" in capsys.readouterr().err


def test_figures_of_the_hardware_can_be_overridden(tmp_path):
    plan = _planned(tmp_path, "--gpus_per_node=2", "--hardware.intra_node=1e6", "--hardware.memory=90000000000")
    assert plan["device"]["intra_node"] == 1e6
    assert plan["device"]["memory"] == 90_000_000_000
    seconds = plan["steps"][0]["seconds"]
    assert max(seconds, key=seconds.get) == "links in a machine"
