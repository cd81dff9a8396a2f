import json

import pytest
import torch

from dist_imsr.benchmarks.store import StoreBench, StoreWorker
from launch.bench import main
from tests.ranks import run_ranks

TINY = [
    *("--items", "300", "--users", "80", "--few", "40", "--batch", "8", "--dim", "8", "--interests", "5"),
    *("--steps", "2", "--warmup", "1", "--repeats", "2"),
]
OF_BOTH = "expand_and_trim_rate_over_memcpy"
MOVING = {
    **dict.fromkeys((OF_BOTH, f"{OF_BOTH}_and_drawing", "expand_rate_over_memcpy", "trim_rate_over_memcpy"), 2),
    **dict.fromkeys(("seconds_an_expand", "seconds_of_its_draws", "seconds_a_trim", "seconds_of_both_copies"), 2),
    **dict.fromkeys(("expand_peak_bytes_over_held", "trim_peak_bytes_over_held"), 1),
}


def test_figures(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main(["store", *TINY, "--json", str(path)]) == 0
    figures = {row["figure"]: row for row in json.loads(path.read_text())}
    steps = "step_time_80_over_40_users"
    assert {name: row["runs"] for name, row in figures.items()} == {
        **{steps: 2, f"{steps}_comirec_sa": 2},
        **MOVING,
        **{f"{name}_all_grow": runs for name, runs in MOVING.items()},
    }
    assert all(row["min"] > 0 for row in figures.values())
    assert figures[steps]["settings"]["users"] == 80
    assert figures[f"{steps}_comirec_sa"]["settings"]["base"] == "comirec_sa"
    assert figures[OF_BOTH]["settings"]["growing"] == 0.1
    assert figures[f"{OF_BOTH}_all_grow"]["settings"]["interests"] == 2
    assert OF_BOTH in capsys.readouterr().out


def _counts(topology, options):
    """Numbers of interests by user, in each state that is measured."""
    worker = StoreWorker(topology, options, options.interests, options.growing)
    counts = [worker.store.counts]
    for act in (worker.expand, worker.shorten, worker.trim, worker.restore):
        act()
        counts.append(worker.store.counts)
    return counts


def test_growing_users_gain_new_interests_and_lose_short_ones():
    options = StoreBench(users=50, few=20, items=100, batch=8, ranks=1, dim=8, interests=4, growing=0.5)
    ((before, grown, shortened, trimmed, restored),) = run_ranks(1, _counts, options)
    assert (before == 4).all()
    assert grown.sort().values.tolist() == [4] * 25 + [7] * 25
    assert torch.equal(shortened, grown)
    assert torch.equal(trimmed, torch.where(grown == 7, 5, 4))
    assert torch.equal(restored, before)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["--repeats", "0"], "repeats"),
        (["--few", "3"], "few"),
        (["--few", "81"], "few"),
        (["--growing", "0"], "growing"),
        (["--growing", "1.5"], "growing"),
        (["--growing", "0.001"], "growing"),
        (["--new", "0"], "new"),
        (["--new", "5"], "new"),
        (["--short", "4"], "short"),
        (["--batch", "7"], "batch"),
        (["--json", "missing/figures.json"], "json"),
    ],
)
def test_impossible_options_are_refused_in_one_line(arguments, key, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["store", *TINY, *arguments])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert errors.count("\n") == 1
    assert key in errors
