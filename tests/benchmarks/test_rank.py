import json

import pytest
import torch

from dist_imsr.benchmarks.rank import RankWorker
from dist_imsr.benchmarks.synthetic import draw_items, draw_users
from launch.bench import main

TINY = [
    *("--items", "300", "--dim", "8", "--users", "7", "--interests", "3", "--top", "5", "--memory", "16"),
    *("--repeats", "2"),
]
NAMES = [
    *("ranker_users_per_second", "first_places_users_per_second", "best_users_per_second"),
    *("ranker_flops_over_matmul", "best_flops_over_matmul", "ranker_peak_bytes_over_budget"),
    *("ranker_users_per_second_over_straightforward", "ranks_users_per_second_over_straightforward"),
]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [([], [*NAMES, *(f"{name}_bf16" for name in NAMES)]), (["--precision", "fp32", "--ranks", "2"], NAMES)],
)
def test_figures(arguments, names, tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main(["rank", *TINY, *arguments, "--json", str(path)]) == 0
    figures = {row["figure"]: row for row in json.loads(path.read_text())}
    assert set(figures) == {"matmul_flops_per_second", *names}
    for name, row in figures.items():
        assert row["min"] <= row["median"] == row["value"] <= row["max"]
        assert row["value"] >= 0
        assert row["runs"] == (1 if "peak" in name else 2)
    assert figures["ranker_users_per_second"]["settings"]["users"] == 7
    assert "ranker_flops_over_matmul" in capsys.readouterr().out


def test_items_and_users_are_those_of_the_docstring():
    items = 70_000
    table = draw_items(items, dim=64, seed=0)
    lengths = table.norm(dim=1)
    assert 1.4 < lengths.median() < 1.6
    assert lengths.max() > 4
    vectors, wanted = draw_users(table, users=400, interests=4, seed=0)
    assert (vectors.norm(dim=-1) < 1).all()
    assert torch.equal(table, draw_items(items, dim=64, seed=0))
    assert 1 <= wanted.min() <= wanted.max() <= items
    assert 0.3 < (wanted < items**0.5).double().mean() < 0.7
    assert 0.4 < (vectors[:20].flatten(0, 1) @ table.T).std() < 0.9


def test_ranks_that_differ_in_bf16_are_refused():
    worker = RankWorker.__new__(RankWorker)
    worker.results = {("fp32", "ranks"): torch.tensor([1.0, 2.0]), ("bf16", "ranks"): torch.tensor([1.0, 2.5])}
    with pytest.raises(RuntimeError, match="1 of 2 ranks differ"):
        worker.check()


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--dim", "0"], "dim"),
        (["--top", "301"], "top"),
        (["--users", "1", "--ranks", "2"], "users"),
        (["--memory", "0"], "memory"),
        (["--precision", "fp16"], "precision"),
        (["--itms", "3"], "itms"),
    ],
)
def test_impossible_options_are_refused_in_one_line(arguments, key, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["rank", *TINY, *arguments])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert errors.count("\n") == 1
    assert key in errors
