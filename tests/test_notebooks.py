"""The notebooks in examples/ run from top to bottom, on small data."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.test_docs import ROOT, write_logs

SMALL = [
    *("--model.dim=8", "--model.interests=3", "--batch.size=16", "--batch.max_targets=3", "--batch.negatives=20"),
    *("--training.epochs=2", "--training.incremental_epochs=1", "--strategy.imsr.detector.c1=0.98"),
]
PARAMETERS = {
    "first_look": 'log, spans, folder = "clicks.csv", 3, "data/first_look"\n'
    'columns = {"user": "uid", "item": "sku", "time": "ts"}',
    "growing_interests": f'data, run_dir, settings = "data/first_look", "runs/growing", {SMALL}',
    "fair_comparison": f'data, folder, seeds, settings = "data/first_look", "runs/fair", [0, 1], {SMALL}',
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Notebooks run one after the other in one folder: the first one prepares the data of the others."""
    folder = tmp_path_factory.mktemp("notebooks")
    write_logs(folder)
    return folder


def test_all_notebooks_are_run():
    assert {path.stem for path in (ROOT / "examples").glob("*.ipynb")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_notebook_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PLOTLY_RENDERER", "json")
    notebook = nbformat.read(ROOT / "examples" / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "notebooks are kept without outputs"
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = PARAMETERS[name]
    NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    text = " ".join(output.text for output in outputs if output.output_type == "stream")
    expected = {
        "first_look": "own_history",
        "growing_interests": "interest 1, born in",
        "fair_comparison": "over seeds",
    }
    assert expected[name] in text
