import json

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from dist_imsr.evaluation.finished import FinishedRun
from launch.export import main

faiss = pytest.importorskip("faiss", reason="FAISS is not installed: pip install 'dist-imsr[export]'")


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_what_is_exported_can_be_served(finished, tmp_path, kind):
    output = tmp_path / "export"
    arguments = ["--run_dir", str(finished.folder), "--output", str(output), "--top", "5"]
    assert main([*arguments, "--index.kind", kind, "--index.candidates", "60"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export"]
    told, dataset = json.loads((output / "export.json").read_text()), FinishedRun(finished.folder).dataset
    items, interests = (pq.read_table(output / f"{name}.parquet") for name in ("items", "interests"))
    assert items["item"].to_pylist() == dataset.raw("items", np.arange(told["items"])).to_pylist()
    assert told["interests"] == len(interests)
    assert told["recall@5"] == pytest.approx(1.0, abs=0.05)
    counts = duckdb.sql(
        f"SELECT user, max(interest) + 1 AS k, count(*) AS n FROM '{output}/interests.parquet' GROUP BY user"
    )
    assert all(k == n for _, k, n in counts.fetchall())
    index = faiss.read_index(str(output / "items.faiss"))
    assert index.ntotal == told["items"]
    vectors = np.stack(items["vector"].to_numpy())
    _, found = index.search(np.stack(interests["vector"].to_numpy())[:3], 1)
    wanted = (np.stack(interests["vector"].to_numpy())[:3] @ vectors.T).argmax(1)
    assert (found[:, 0] == wanted).mean() > 0.6


def test_an_existing_folder_is_refused(finished, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--run_dir", str(finished.folder), "--output", str(tmp_path)])
    assert stopped.value.code == 2
    assert "output" in capsys.readouterr().err
