"""Summaries and tables of cells whose numbers are made up."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from dist_imsr.comparison.config import Row
from dist_imsr.comparison.grid import Experiment
from dist_imsr.comparison.jobs import Job, State
from dist_imsr.comparison.report import quality_tables, time_tables
from dist_imsr.comparison.results import Cells, cell_records, summary_records
from dist_imsr.comparison.statistics import holm
from dist_imsr.data.dataset import DataConfig
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.training.config import TrainConfig

ROWS = {"fine_tuning": Row(), "imsr": Row(), "mimn": Row("life_long", ["mimn"])}
USERS = ["a", "b", "c", "d"]


def _cells(place, base, row, hits, needs=None):
    """One row: of each seed and tested span, which users were hit; None for a seed that failed."""
    jobs = {}
    for seed, spans in hits.items():
        folder = place.output / base / row / str(seed)
        config = TrainConfig(
            data=DataConfig(place.data), run_dir=folder, seed=seed, eval=EvalConfig([5], per_user=True)
        )
        job = jobs[seed] = Job(f"{row} {seed}", folder, config, [], {}, (needs or {}).get(seed))
        job.begin()
        (folder / "users").mkdir()
        lines = []
        for span, hit in enumerate(spans or [], 1):
            hr = [float(user in hit) for user in USERS]
            values = {"user": USERS, "hr@5": hr, "ndcg@5": [0.5 * value for value in hr]}
            pq.write_table(pa.table(values), folder / "users" / f"span={span + 1}.parquet")
            means = {"hr@5": sum(hr) / 4, "ndcg@5": sum(hr) / 8, "hr@5_unseen": [None, 0.25][span - 1]}
            means |= {"validation": 0.01 * span, "interests_mean": 4.0 + span}
            lines.append({"span": span, "test_span": span + 1, "users": 4, "train_seconds": span + seed, **means})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        job.end(State("failed", "the disk | is full") if spans is None else State("done"))
    return Cells(Experiment("drawn", base, row), jobs, 5)


@pytest.fixture
def made(place):
    needs = {seed: object() for seed in range(3)}
    config = place.compare(strategies=ROWS, bases=["comirec_dr"], seeds=[0, 1, 2], tests=["fine_tuning", "imsr"])
    return config, [
        _cells(place, "comirec_dr", "fine_tuning", {0: ["a", "b"], 1: ["a", ""], 2: ["b", "b"]}, needs),
        _cells(place, "comirec_dr", "imsr", {0: ["ab", "bc"], 1: ["abc", "a"], 2: None}, {**needs, 1: object()}),
        _cells(place, "mimn", "mimn", {0: ["a", "b"], 1: ["a", ""], 2: ["b", "b"]}),
    ]  # fmt: skip


def test_a_summary_by_hand(made):
    config, cells = made
    tuned, imsr, mimn = summary_records(config, cells)
    assert tuned["hr"] == pytest.approx((25 + 12.5 + 25) / 3)
    assert tuned["hr_std"] == pytest.approx(7.2169, abs=1e-4)
    assert (tuned["ri"], tuned["missing"], tuned["seeds"]) == (None, "", 3)
    assert (tuned["unseen"], tuned["unseen_std"]) == (25.0, 0.0)  # a span without new targets has no value
    assert (imsr["hr"], imsr["ndcg"], imsr["seeds"]) == (50.0, 25.0, 2)
    assert imsr["missing"] == "seed 2 failed: the disk | is full"
    assert imsr["ri"] == pytest.approx(100 * (50 / 18.75 - 1))  # over the seeds that both have
    own, other = [0.75, 0.75, 0.5, 0.0], [0.5, 0.25, 0.0, 0.0]  # means of a, b, c, d
    assert imsr["p_users_hr_vs_fine_tuning"] == pytest.approx(stats.ttest_rel(own, other).pvalue)
    assert imsr["p_seeds_hr_vs_fine_tuning"] == pytest.approx(stats.ttest_rel([0.5, 0.5], [0.25, 0.125]).pvalue)
    assert (imsr["n_users_vs_fine_tuning"], imsr["n_seeds_vs_fine_tuning"]) == (4, 2)
    assert "p_users_hr_vs_imsr" not in imsr
    assert tuned["p_users_ndcg_vs_imsr"] == pytest.approx(imsr["p_users_ndcg_vs_fine_tuning"])
    assert (mimn["ri"], mimn["p_users_hr_vs_fine_tuning"], mimn["p_seeds_hr_vs_fine_tuning"]) == (0.0, 1.0, 1.0)
    assert [row["pretrained_apart"] for row in (tuned, imsr, mimn)] == [False, True, False]


def test_tables_show_what_there_is(made):
    config, cells = made
    third, fourth = quality_tables(config, summary_records(config, cells))
    assert [row[:2] for row in third.rows] == [["comirec_dr", "fine_tuning"], ["comirec_dr", "imsr"]]
    assert [row[1] for row in fourth.rows] == ["mimn", "fine_tuning", "imsr"]
    assert third.columns[:8] == ["base", "strategy", "HR@5", "NDCG@5", "HR@5 unseen", "validation", "K", "RI"]
    assert third.rows[0][2:10] == [
        "20.83 ± 7.22",
        "10.42 ± 3.61",
        "25.00 ± 0.00",
        "1.50 ± 0.00",
        "6.00 ± 0.00",
        "-",
        "-",
        "-",
    ]
    assert third.rows[1][2:8] == [
        "50.00 ± 0.00",
        "25.00 ± 0.00",
        "25.00 ± 0.00",
        "1.50 ± 0.00",
        "6.00 ± 0.00",
        "166.67",
    ]
    assert third.rows[1][10:] == ["-", "-", "2; seed 2 failed: the disk | is full; own pre-training"]
    assert fourth.rows[0][7:10] == ["0.00", "1.000 / 1.000 (n=4)", "1.000 / 1.000 (n=3)"]
    assert r"the disk \| is full" in third.markdown()
    (times,) = time_tables(config, cells)
    assert times.columns == ["base", "strategy", "t=1", "t=2"]
    assert times.rows[:2] == [["comirec_dr", "fine_tuning", "2.00", "3.00"], ["comirec_dr", "imsr", "1.50", "2.50"]]


def test_results_hold_every_cell(made):
    records = cell_records(made[1])
    assert len(records) == 2 * 3 * 2 + 2 * 2 + 1
    failed = [record for record in records if record["status"] == "failed"]
    assert [(one["row"], one["seed"], one["reason"]) for one in failed] == [("imsr", 2, "the disk | is full")]


def test_a_row_without_numbers_says_why(place):
    config = place.compare(strategies={"fine_tuning": Row()}, bases=["comirec_dr"], seeds=[0])
    cells = [_cells(place, "comirec_dr", "fine_tuning", {0: None})]
    (sheet,) = quality_tables(config, summary_records(config, cells))
    assert sheet.rows == [["comirec_dr", "fine_tuning", *["-"] * 8, "seed 0 failed: the disk | is full"]]


def _baseline(place, hits):
    """The row of a baseline: one run for all seeds."""
    return replace(cells := _cells(place, "-", "counts", {0: hits}), jobs=dict.fromkeys(range(3), cells.jobs[0]))


def test_a_baseline_stands_for_all_seeds(made, place):
    config, cells = made
    config = replace(config, strategies=ROWS | {"counts": Row(baseline="popular")}, tests=["fine_tuning", "counts"])
    baseline = _baseline(place, ["abc", "cd"])
    records = summary_records(config, [*cells, baseline])
    tuned, imsr, mimn, counts = records
    assert (counts["hr"], counts["hr_std"], counts["seeds"], counts["pretrained_apart"]) == (62.5, None, 1, False)
    assert (tuned["n_seeds_vs_counts"], imsr["n_seeds_vs_counts"], mimn["n_seeds_vs_counts"]) == (3, 2, 3)
    assert counts["p_users_hr_vs_fine_tuning"] == pytest.approx(tuned["p_users_hr_vs_counts"])
    expected = stats.ttest_1samp([0.25 - 0.625, 0.125 - 0.625, 0.25 - 0.625], 0).pvalue
    assert tuned["p_seeds_hr_vs_counts"] == pytest.approx(expected)
    assert "p_users_hr_vs_counts" not in counts
    third, fourth = quality_tables(config, records)
    assert [row[:2] for row in third.rows][-1] == ["-", "counts"]
    assert third.rows[-1][2:4] == ["62.50", "31.25"]
    assert [row[1] for row in fourth.rows] == ["mimn", "fine_tuning", "counts"]
    assert [record["seed"] for record in cell_records([baseline])] == [None, None]


def test_a_baseline_that_failed_says_why(place):
    config = place.compare(strategies={"counts": Row(baseline="popular")}, reference="counts", tests=["counts"])
    (sheet,) = quality_tables(config, summary_records(config, [_baseline(place, None)]))
    assert sheet.rows == [["-", "counts", *["-"] * 8, "failed: the disk | is full"]]


def test_tests_of_a_base_model_against_one_row_are_corrected_together(place):
    needs = {seed: object() for seed in range(3)}
    rows = {"fine_tuning": Row(), "imsr": Row(), "frozen": Row()}
    config = place.compare(strategies=rows, bases=["comirec_dr"], seeds=[0, 1, 2])
    hits = {"fine_tuning": ["a", "b"], "imsr": ["ab", "bc"], "frozen": ["", "d"]}
    cells = [_cells(place, "comirec_dr", row, dict.fromkeys(range(3), spans), needs) for row, spans in hits.items()]
    _, imsr, frozen = summary_records(config, cells)
    names = [f"users_{name}_vs_fine_tuning" for name in ("hr", "ndcg")]
    family = [record[f"p_{name}"] for record in (imsr, frozen) for name in names]
    assert [record[f"holm_{name}"] for record in (imsr, frozen) for name in names] == pytest.approx(holm(family))
    assert imsr[f"holm_{names[0]}"] > imsr[f"p_{names[0]}"]
