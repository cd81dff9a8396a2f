import json
import re
import shutil
from pathlib import Path

import pytest

from dist_imsr.report.config import ReportConfig
from dist_imsr.report.sources import Run, Sources


def sources_of(runs, **keys):
    return Sources(ReportConfig(output=Path("report.html"), runs=runs, **keys))


def test_seeds_of_one_configuration_are_one_row(sources):
    assert [(run.label, run.seed) for run in sources.runs] == [("imsr", 0), ("imsr", 1), ("fine_tuning", 0)]
    assert sources.reference == "fine_tuning"
    assert sources.top == 5


def test_other_settings_are_told_apart_by_their_folders(runs, tmp_path):
    other = shutil.copytree(runs[0], tmp_path / "tuned")
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("c1: 0.98", "c1: 0.5"))
    assert [run.label for run in sources_of([runs[0], other, runs[2]]).runs] == ["imsr", "tuned", "fine_tuning"]
    again = shutil.copytree(runs[0], tmp_path / "again" / "imsr")  # the same name and seed
    found = [run.label for run in sources_of([runs[0], again]).runs]
    assert len(set(found)) == 2


def test_a_run_and_a_row_of_a_comparison_are_not_one(runs, comparison):
    found = sources_of([runs[2]], compare=comparison)
    assert [run.label for run in found.runs if run.strategy == "fine_tuning"] == ["ft", "fine_tuning", "fine_tuning"]


def test_baselines_of_runs_are_rows(sources):
    own = {record["label"] for record in sources.records if record["is_baseline"]}
    assert own == {"popular", "own_history"}
    lines = [json.loads(line) for line in (sources.runs[0].folder / "baselines.jsonl").read_text().splitlines()]
    assert len([record for record in sources.records if record["label"] == "popular"]) == len(lines) // 2


def test_a_line_that_is_being_written_does_not_count(runs, tmp_path):
    copy = shutil.copytree(runs[0], tmp_path / "going_on")
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"span": 3, "hr@')
    assert len(Run(copy).lines) == len(Run(runs[0]).lines) == 2


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"reference": "sml"}, "reference: sml is none of imsr, fine_tuning, popular, own_history"),
        ({"top": 10}, "top: 10 is not in eval.top of all runs; all have [5]"),
    ],
)
def test_what_the_runs_do_not_have_is_refused(runs, keys, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sources_of(runs, **keys)


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no config.yaml: name the folder of a run"):
        sources_of([tmp_path])
    (tmp_path / "config.yaml").write_text("seed: [1")
    with pytest.raises(ValueError, match=r"config.yaml is no configuration of a run"):
        sources_of([tmp_path])
    with pytest.raises(ValueError, match=r"compare: .* holds no results.parquet"):
        Sources(ReportConfig(output=Path("a.html"), compare=tmp_path))


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"runs": []}, "runs"),
        ({"output": Path("a.htm")}, "output"),
        ({"format": "png"}, "figure"),
        ({"figure": "spans"}, "figure"),
        ({"format": "png", "figure": "spans", "output": Path("a.html")}, "output"),
        ({"watch": -1}, "watch"),
    ],
)
def test_impossible_values_are_refused_by_their_key(keys, key):
    with pytest.raises(ValueError, match=f"^{key}:"):
        ReportConfig(**({"output": Path("a.html"), "runs": [Path("run")]} | keys))
