"""The tables of a comparison: ranks, cost, ablation and sensitivity."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dist_imsr.report.config import ReportConfig
from dist_imsr.report.sources import Missing, Sources
from dist_imsr.report.tables import comparison as tables


@pytest.fixture
def compared(comparison):
    return Sources(ReportConfig(output=Path("a.html"), compare=comparison))


@pytest.fixture
def summary(comparison):
    found = pq.read_table(comparison / "summary.parquet").to_pylist()
    return {row["strategy"]: row for row in found}


def test_rows_are_labels(compared):
    assert compared.labels(compared.groups[0]) == ["fine_tuning", "imsr", "no_detector", "c1_low", "at_once", "more"]
    assert {record["label"] for record in compared.records if record["is_baseline"]} == {"popular"}
    assert compared.reference == "fine_tuning"


def test_ablation_has_the_rows_of_parts(compared, summary):
    found = tables.ablation(compared)["ablation"].to_pylist()
    assert [row["label"] for row in found] == ["imsr", "no_detector"]
    for row in found:
        assert (row["hr"], row["ndcg_std"]) == (summary[row["label"]]["hr"], summary[row["label"]]["ndcg_std"])


def test_sensitivity_has_the_rows_of_settings(compared, summary):
    found = tables.sensitivity(compared)["sensitivity"].to_pylist()
    series = {(row["key"], row["value"]): row for row in found}
    assert set(series) == {
        ("c1", "0.98"),
        ("c1", "0.5"),
        ("c2", "0.05"),
        ("K, delta K", "3, 1"),
        ("K, delta K", "2, 2"),
        ("K, delta K", "5, 0"),
    }
    assert series["c1", "0.5"]["hr"] == summary["c1_low"]["hr"]
    assert series["K, delta K", "2, 2"]["ndcg"] == summary["more"]["ndcg"]
    assert not series["c2", "0.05"]["changed"]


def test_cost_and_its_front(compared):
    found = {row["label"]: row for row in tables.comparison(compared)["comparison_cost"].to_pylist()}
    for label, row in found.items():
        records = [record for record in compared.records if record["label"] == label]
        assert row["hr"] == pytest.approx(np.mean([record["hr@5"] for record in records]))
        assert row["seconds"] == pytest.approx(
            np.mean([record["train_seconds"] for record in records if record["span"] == 2])
        )
        beaten = [
            other
            for other in found.values()
            if (other["hr"] > row["hr"] and other["seconds"] <= row["seconds"])
            or (other["hr"] >= row["hr"] and other["seconds"] < row["seconds"])
        ]
        assert row["front"] == (not beaten)


def test_ranks_and_their_critical_difference():
    cost = [
        {"data": data, "base": "b", "label": label, "hr": hr}
        for data, values in (("one", (0.1, 0.2, 0.3)), ("two", (0.2, 0.2, 0.3)))
        for label, hr in zip("xyz", values, strict=True)
    ]
    cost.append({"data": "one", "base": "b", "label": "only here", "hr": 0.9})
    found = {row["label"]: row for row in tables._ranks(cost)}
    assert {label: row["rank"] for label, row in found.items()} == {"x": 2.75, "y": 2.25, "z": 1.0}
    assert found["x"]["difference"] == pytest.approx(2.343 * (3 * 4 / (6 * 2)) ** 0.5, abs=1e-3)  # q of 3 at 0.05
    assert found["x"]["blocks"] == 2
    assert tables._ranks(cost[:3]) == []


def test_runs_alone_have_no_ablation(sources):
    for compute in (tables.ablation, tables.sensitivity):
        with pytest.raises(Missing, match="it needs --compare"):
            compute(sources)
