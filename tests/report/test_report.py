"""The page and its files, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch.compare import main as compare_main
from launch.report import main
from tests.report.conftest import train

ROOT = Path(__file__).parents[2]


def figures_of(page):
    found = re.findall(r'<script type="application/json" data-for="([^"]*)">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(text) for name, text in found}


def made(output, *arguments):
    assert main(["--output", str(output), *map(str, arguments)]) == 0
    return output.read_text()


def test_the_page_has_all_sections_and_its_tables(runs, tmp_path):
    page = made(tmp_path / "report.html", "--runs", *runs)
    figures = figures_of(page)
    for name in (
        "summary-hr_5-drawn-comirec_dr",
        "data-shares-drawn",
        "spans-ndcg_5_unseen-drawn-comirec_dr",
        "interests-mean-drawn-comirec_dr",
        "interests-correlations-drawn-comirec_dr",
        "interests-events-drawn-comirec_dr-imsr",
        "interests-fit-drawn-comirec_dr-imsr",
        "interests-norms-drawn-comirec_dr-imsr",
        "interests-users-drawn-comirec_dr-imsr",
        "one_user_map",
        "one_user_targets",
        "groups-items-drawn-comirec_dr",
        "groups-activity-drawn-comirec_dr",
        "groups-interests-drawn-comirec_dr",
        "groups-detection-drawn-comirec_dr",
        "training-train_loss-drawn-comirec_dr",
        "training-seconds-drawn-comirec_dr-imsr",
        "training-memory-drawn-comirec_dr-fine_tuning",
        "training-speed-drawn-comirec_dr",
        "comparison-cost-drawn-comirec_dr",
    ):
        assert any(trace.get("x") or trace.get("z") for trace in figures[name]["data"]), name
    assert len(set(figures)) == page.count('role="img"')
    assert all(re.search(rf'id="{name}" role="img" aria-label="[^"]{{20,}}"', page) for name in figures)
    for title in ("Ablation", "Sensitivity"):
        assert re.search(rf"{title}</h2>.*?Left out: it needs --compare", page, re.DOTALL)
    assert "http-equiv" not in page
    assert len(page) < 15e6
    tables = {path.stem for path in (tmp_path / "report_data").iterdir()}
    assert {"summary", "over_spans", "interests_fit", "one_user_map", "groups", "training_seconds"} <= tables
    table = pq.read_table(tmp_path / "report_data" / "over_spans.parquet").to_pylist()
    [trace] = [
        one
        for one in figures["spans-hr_5-drawn-comirec_dr"]["data"]
        if one["meta"] == "fine_tuning" and one.get("mode") == "lines+markers"
    ]
    wanted = [row["mean"] for row in table if (row["label"], row["metric"]) == ("fine_tuning", "hr@5")]
    assert trace["y"] == pytest.approx(wanted, rel=1e-5)


def test_runs_without_exports_say_what_they_lack(data, tmp_path):
    run = train(data, tmp_path / "bare", "--training.export=none", "--eval.per_user=false", "--baselines=false")
    page = made(tmp_path / "report.html", "--runs", run)
    assert "no run has two exported spans: train with --training.export every" in page
    assert "there are no two rows to compare" in page
    assert "spans-hr_5-drawn-comirec_dr" in figures_of(page)


def test_a_run_that_has_just_begun(runs, tmp_path):
    shutil.copy(runs[0] / "config.yaml", tmp_path)
    page = made(tmp_path / "report.html", "--runs", tmp_path)
    assert "no span has been tested yet" in page


def test_a_comparison_has_its_rows(comparison, tmp_path):
    page = made(tmp_path / "report.html", "--compare", comparison)
    figures = figures_of(page)
    assert {"ablation-hr-drawn-comirec_dr", "sensitivity-c1-hr-comirec_dr"} <= set(figures)
    assert "Table III: drawn" in page
    assert "Table V: drawn" in page
    assert [trace["name"] for trace in figures["ablation-hr-drawn-comirec_dr"]["data"]] == ["imsr", "no_detector"]
    assert "training-seconds-drawn-comirec_dr" in figures  # five rows: one figure of totals


def test_a_comparison_writes_its_page_itself(comparison):
    (comparison / "report.html").unlink(missing_ok=True)
    assert compare_main(["--config", str(comparison / "config.yaml"), "--table_only", "true"]) == 0
    assert "Table III: drawn" in (comparison / "report.html").read_text()


def test_texts_cannot_break_the_page(runs, tmp_path):
    copy = shutil.copytree(runs[2], tmp_path / "<b>&\"'")
    settings = (copy / "config.yaml").read_text().replace("patience: ", "patience: 1")
    (copy / "config.yaml").write_text(settings)
    page = made(tmp_path / "report.html", "--runs", copy, runs[2])
    assert "<b>&" not in page
    names = {trace.get("name") for one in figures_of(page).values() for trace in one["data"]}
    assert "&lt;b&gt;&amp;\"'" in names  # Plotly reads markup as well


def test_other_files_are_kept(runs, tmp_path, capsys):
    page = tmp_path / "notes.html"
    page.write_text("<p>my notes</p>")
    assert main(["--runs", str(runs[0]), "--output", str(page)]) == 2
    assert "notes.html exists and is no report's page" in capsys.readouterr().err
    assert page.read_text() == "<p>my notes</p>"
    (tmp_path / "notes_data").mkdir()
    (tmp_path / "notes_data" / "thesis.tex").write_text("years of work")
    pq.write_table(pa.table({"own": [1]}), tmp_path / "notes_data" / "own.parquet")
    made(page, "--runs", *runs, "--overwrite", "true")
    made(page, "--runs", runs[2])  # a page of its own is replaced, and so are its tables
    left = {path.name for path in (tmp_path / "notes_data").iterdir()}
    assert {"thesis.tex", "own.parquet", "over_spans.parquet"} <= left
    assert "interests_fit.parquet" not in left


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "nowhere"], "runs: nowhere holds no config.yaml"),
        (["--compare", "nowhere"], "compare: nowhere holds no config.yaml"),
        (["--runs", "RUN", "--user", "nobody"], "user: nobody has no interests"),
    ],
)
def test_bad_input_is_one_line(arguments, message, runs, tmp_path, capsys):
    arguments = [str(runs[0]) if one == "RUN" else one for one in arguments]
    assert main([*arguments, "--output", str(tmp_path / "a.html")]) == 2
    assert re.fullmatch(rf"report.py: {message}.*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_page_is_written_again_until_ctrl_c(runs, tmp_path):
    command = [sys.executable, "launch/report.py", "--runs", runs[0], "--output", tmp_path / "a.html", "--watch", "1"]
    process = subprocess.Popen(
        [*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines = [process.stderr.readline() for _ in range(2)]
    assert all("a.html: " in line for line in lines)
    process.send_signal(2)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "report.py: stopped; " in errors
    assert "http-equiv" not in (tmp_path / "a.html").read_text()  # it must not load itself again for ever


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_one_figure_for_a_paper(kind, runs, tmp_path):
    output = tmp_path / f"figure.{kind}"
    made_of = {"png": b"\x89PNG", "svg": b"<svg", "pdf": b"%PDF"}[kind]
    name = "spans-hr_5-drawn-comirec_dr"
    assert main(["--runs", *map(str, runs), "--format", kind, "--figure", name, "--output", str(output)]) == 0
    assert output.read_bytes().startswith(made_of)
    if kind == "svg":
        assert "fine_tuning" in output.read_text()  # the legend, which the page has on its own


def test_an_unknown_figure_is_refused_with_the_names(runs, tmp_path, capsys):
    output = tmp_path / "figure.png"
    assert main(["--runs", str(runs[0]), "--format", "png", "--figure", "spans", "--output", str(output)]) == 2
    assert "figure: spans is none of summary-hr_5-drawn-comirec_dr, " in capsys.readouterr().err
