import json

import pytest

from launch.bench import main

TINY = [
    *("--drift.users", "80", "--drift.items", "200", "--drift.clusters", "20", "--drift.interactions", "[2000, 1000]"),
    *("--spans", "3", "--epochs", "1", "--pretraining_epochs", "1"),
]


def test_figures(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main(["strategies", *TINY, "--json", str(path)]) == 0
    figures = {row["figure"]: row for row in json.loads(path.read_text())}
    assert {name: row["runs"] for name, row in figures.items()} == {
        **dict.fromkeys(("imsr_span_seconds", "ft_span_seconds", "imsr_over_ft_span_seconds"), 3),
        **dict.fromkeys(("span_seconds_last_over_first", "ft_span_seconds_last_over_first"), 1),
    }
    assert all(row["value"] > 0 for row in figures.values())
    assert "imsr_over_ft_span_seconds" in capsys.readouterr().out


def test_spans_must_be_equally_long(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["strategies", *TINY, "--drift.interactions", "[2000, 1000, 3000]"])
    assert stopped.value.code == 2
    assert "drift.interactions" in capsys.readouterr().err
