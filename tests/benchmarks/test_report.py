import io
import json

import pytest
from rich.console import Console

from dist_imsr.benchmarks.report import Figure, ratios, show, write_json

FIGURES = [Figure("speed", "steps/s", [3.0, 1.0, 2.5], {"batch": 8}), Figure("ratio", "ratio", [2.0], {})]


def test_rows():
    assert FIGURES[0].row() == {
        **{"figure": "speed", "value": 2.5, "unit": "steps/s", "median": 2.5, "min": 1.0, "max": 3.0, "runs": 3},
        "mean": pytest.approx(6.5 / 3),
        "settings": {"batch": 8},
    }


def test_ratios_are_taken_pair_by_pair():
    assert ratios([4.0, 9.0], [2.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_written_whole(tmp_path):
    path = tmp_path / "figures.json"
    write_json(FIGURES, path)
    assert json.loads(path.read_text()) == [figure.row() for figure in FIGURES]
    with pytest.raises(TypeError):
        write_json([Figure("bad", "s", [1.0], {"path": object()})], path)
    assert json.loads(path.read_text()) == [figure.row() for figure in FIGURES]
    assert [entry.name for entry in tmp_path.iterdir()] == ["figures.json"]


def test_table():
    text = io.StringIO()
    show(FIGURES, Console(file=text, width=120))
    assert "speed" in text.getvalue()
    assert "2.5" in text.getvalue()
