import io
import json

import pytest
from rich.console import Console

from dist_imsr.benchmarks.ceilings import COPY, copy_bound, matmul_bound
from dist_imsr.benchmarks.report import Figure, ratios, show, write_json

FIGURES = [Figure("speed", "steps/s", [3.0, 1.0, 2.5], {"batch": 8}), Figure("ratio", "ratio", [2.0], {})]


def test_rows():
    assert FIGURES[0].row() == {
        **{"figure": "speed", "value": 2.5, "unit": "steps/s", "median": 2.5, "min": 1.0, "max": 3.0, "runs": 3},
        "mean": pytest.approx(6.5 / 3),
        "settings": {"batch": 8},
    }


def test_a_ceiling_is_reported_where_its_rate_was_measured():
    rates = {COPY: 100.0, "product_fp32_flops_per_second": 8.0}
    seconds = Figure("copying", "s", [4.0, 8.0, 9.0], {}, copy_bound(200))
    assert seconds.row(rates)["ceiling"] == {"figure": COPY, "value": 2.0, "unit": "s", "share": 0.25}
    users = Figure("users", "users/s", [0.5], {}, matmul_bound(4.0))
    ceiling = {"figure": "product_fp32_flops_per_second", "value": 2.0, "unit": "users/s", "share": 0.25}
    assert users.row(rates)["ceiling"] == ceiling
    for figure, known in ((seconds, {}), (users, {COPY: 1.0}), (FIGURES[0], rates)):
        assert "ceiling" not in figure.row(known)


@pytest.mark.parametrize(
    ("precision", "share"), [("fp32", 0.25), ("ieee", 0.25), ("bf16", 0.125), ("bf16x3", 0.375), ("tf32", None)]
)
def test_products_of_all_kinds(precision, share):
    rates = {"product_fp32_flops_per_second": 8.0, "product_bf16_flops_per_second": 16.0}
    row = Figure("products", "s", [4.0], {}, matmul_bound(8.0, precision)).row(rates)
    assert row.get("ceiling", {}).get("share") == share


def test_details_are_keys_of_the_row():
    row = Figure("speed", "s", [1.0], {}, details={"phases": [1, 2]}).row()
    assert row["phases"] == [1, 2]
    assert row["value"] == 1.0


def test_ratios_are_taken_pair_by_pair():
    assert ratios([4.0, 9.0], [2.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_written_whole(tmp_path):
    path = tmp_path / "figures.json"
    rows = [figure.row() for figure in FIGURES]
    write_json(rows, path)
    assert json.loads(path.read_text()) == rows
    with pytest.raises(TypeError):
        write_json([Figure("bad", "s", [1.0], {"path": object()}).row()], path)
    assert json.loads(path.read_text()) == rows
    assert [entry.name for entry in tmp_path.iterdir()] == ["figures.json"]


def _shown(rows):
    text = io.StringIO()
    show(rows, Console(file=text, width=160))
    return text.getvalue()


def test_table():
    plain = _shown([figure.row() for figure in FIGURES])
    assert "speed" in plain
    assert "2.5" in plain
    assert "share" not in plain
    ceiling = _shown([Figure("copying", "s", [8.0], {}, copy_bound(200)).row({COPY: 100.0}), FIGURES[0].row()])
    assert "0.25" in ceiling
    assert COPY in ceiling
