import json

import pytest
import torch

from dist_imsr.benchmarks.steps import StepsOptions, synthetic_batch
from dist_imsr.distributed.topology import Topology
from launch.bench import main

TINY = [
    *("--items", "300", "--users", "40", "--batch", "8", "--dim", "8", "--history", "5", "--negatives", "6"),
    *("--steps", "2", "--warmup", "1", "--repeats", "2"),
]


def test_figures(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main(["train", *TINY, "--json", str(path)]) == 0
    figures = {row["figure"]: row for row in json.loads(path.read_text())}
    assert set(figures) == {
        *("steps_per_second", "users_per_second", "peak_bytes_of_all_ranks", "peak_bytes_over_plain_torch"),
        *("users_per_second_2_ranks_over_1", "users_per_second_2_ranks_over_1_same_batch_per_rank"),
        *("step_time_300_over_300_items", "users_per_second_over_plain_torch"),
    }
    for row in figures.values():
        assert row["min"] <= row["median"] == row["value"] <= row["max"]
        assert row["value"] > 0
    assert figures["users_per_second"]["runs"] == 2
    assert figures["users_per_second"]["settings"]["batch"] == 8
    assert "steps_per_second" in capsys.readouterr().out


def test_ranks_slice_one_global_batch():
    options = StepsOptions(items=50, users=41, batch=12, ranks=3, history=4, targets=3, negatives=5)
    parts = [synthetic_batch(options, Topology(rank, 3, 3, torch.device("cpu")), 0) for rank in range(3)]
    for rank, part in enumerate(parts):
        assert len(part.users) == 4
        assert ((part.users % 3 == rank) & (part.users < 42)).all()
        assert part.world_targets == sum(len(other.targets.values()) for other in parts)
        assert torch.equal(part.negatives.values(), parts[0].negatives.values())
    assert len({user for part in parts for user in part.users.tolist()}) == 12


@pytest.mark.parametrize(
    ("arguments", "key"),
    [(["--batch", "0"], "batch"), (["--users", "3"], "users"), (["--batch", "7"], "batch"), (["--itms", "3"], "itms")],
)
def test_impossible_options_are_refused_in_one_line(arguments, key, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", *TINY, *arguments])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert errors.count("\n") == 1
    assert key in errors


def test_benchmarks_are_listed(capsys):
    assert main(["--help"]) == 0
    assert "train" in capsys.readouterr().out
    assert main(["trian"]) == 2
    assert "train" in capsys.readouterr().err
