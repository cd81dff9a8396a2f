import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from launch.export import main
from tests import reference

faiss = pytest.importorskip("faiss", reason="FAISS is not installed: pip install 'dist-imsr[export]'")


def _exported(finished, output, *arguments):
    assert main(["--run_dir", str(finished.folder), "--output", str(output), "--top", "5", *arguments]) == 0
    tables = (pq.read_table(output / f"{name}.parquet").to_pandas() for name in ("items", "interests"))
    return json.loads((output / "export.json").read_text()), *tables


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_the_export_equals_the_state_of_the_run(finished, last_state, tmp_path, kind):
    summary, items, interests = _exported(finished, tmp_path / "export", "--index.kind", kind)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]
    stored, table = last_state
    assert items["item"].tolist() == list(table)
    np.testing.assert_allclose(np.stack(items["vector"]), np.stack(list(table.values())), rtol=1e-6)
    for user, rows in interests.groupby("user"):
        assert rows["interest"].tolist() == list(range(len(stored[user])))
        np.testing.assert_allclose(np.stack(rows["vector"]), stored[user], rtol=1e-6)
    assert summary["interests"] == len(interests) == sum(map(len, stored.values()))
    assert summary["users"] == interests["user"].nunique()
    index = faiss.read_index(str(tmp_path / "export" / "items.faiss"))
    assert index.ntotal == summary["items"] == len(table)
    assert summary["recall@5"] > 0.9


def test_recall_is_the_share_of_the_exact_list_that_is_found(finished, last_state, tmp_path):
    summary, *_ = _exported(finished, tmp_path / "export", "--index.kind", "flat", "--index.candidates", "1")
    stored, rows = last_state[0], np.stack(list(last_state[1].values()))
    shares = []
    for mine in stored.values():
        if len(mine):
            scores = np.array([reference.score(mine, row, "attentive") for row in rows])
            candidates = {item for interest in mine for item in np.argsort(-(rows @ interest))[:5]}
            taken = sorted(candidates, key=lambda item: -scores[item])[:5]
            shares.append(len(set(taken) & set(np.argsort(-scores)[:5])) / 5)
    assert summary["recall@5"] == pytest.approx(np.mean(shares))
    assert summary["sampled_users"] == len(shares)


def test_several_ranks_are_refused(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--run_dir", str(finished.folder), "--output", str(tmp_path / "export")]) == 2
    assert "one machine" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused(finished, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--run_dir", str(finished.folder), "--output", str(tmp_path)])
    assert stopped.value.code == 2
    assert "output" in capsys.readouterr().err
