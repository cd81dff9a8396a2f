import json
import math

import pytest

from dist_imsr.benchmarks.ablation import VARIANTS
from dist_imsr.config import parse
from dist_imsr.data.dataset import Dataset
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.trainer import Trainer
from launch.bench import main
from tests.prepared import drawn_history, write_dataset
from tests.ranks import run_ranks

SMALL = """
data: {{path: {folder}}}
model: {{dim: 8, interests: 3}}
strategy: {{imsr: {{detector: {{measure: divergence, rule: mean, c1: 0.02}}}}}}
batch: {{size: 16, max_history: 10, max_targets: 3, negatives: 20, eval_size: 16}}
training: {{epochs: 3, incremental_epochs: 2, patience: 2}}
eval: {{top: [5]}}
"""
CHOSEN = ["frozen", "imsr", "imsr with kd3", "imsr comirec_sa"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = write_dataset(tmp_path_factory.mktemp("data"), drawn_history(users=60, items=80, spans=4, longest=12))
    path = folder / "train.yaml"
    path.write_text(SMALL.format(folder=folder))
    return path


def _whole(topology, config):
    """A run of its own, with a pre-training of its own."""
    config.run_dir.mkdir()
    return Trainer(config, Dataset(config.data), topology).run()


def test_a_shared_pretraining_changes_nothing(settings, tmp_path):
    path = tmp_path / "figures.json"
    chosen = ["--train", str(settings), "--variants", json.dumps(CHOSEN), "--seeds", "[3]", "--ranks", "1"]
    assert main(["ablation", *chosen, "--json", str(path)]) == 0
    found = {row["figure"]: row["value"] for row in json.loads(path.read_text())}
    assert len(found) == 3 * len(CHOSEN) - 1  # frozen validates nothing
    for name in CHOSEN:
        arguments = [f"--config={settings}", *VARIANTS[name], "--seed=3", f"--run_dir={tmp_path / name}"]
        (lines,) = run_ranks(1, _whole, parse(TrainConfig, arguments))
        for key in ("hr@5", "ndcg@5"):
            assert found[f"{name}: {key}"] == pytest.approx(math.fsum(line[key] for line in lines) / len(lines))


def test_unknown_variants_are_refused(settings, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["ablation", "--train", str(settings), "--variants", '["imsr with kd4"]'])
    assert stopped.value.code == 2
    assert "variants" in capsys.readouterr().err
