import json

import pytest

from dist_imsr.benchmarks.ceilings import COPY
from launch.bench import main

TINY = ["--block", "1", "--size", "32", "--repeats", "2", "--device", "cpu"]


def test_figures(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main(["ceilings", *TINY, "--json", str(path)]) == 0
    figures = {row["figure"]: row for row in json.loads(path.read_text())}
    assert set(figures) == {COPY, "product_fp32_flops_per_second", "product_bf16_flops_per_second"}
    for row in figures.values():
        assert row["runs"] == 2
        assert 1e6 < row["min"] <= row["max"] < 1e15
    assert figures[COPY]["settings"]["block"] == 1
    assert COPY in capsys.readouterr().out


@pytest.mark.parametrize("key", ["block", "size", "repeats", "threads", "seed"])
def test_impossible_options_are_refused_in_one_line(key, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["ceilings", f"--{key}=-1"])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert errors.count("\n") == 1
    assert key in errors
