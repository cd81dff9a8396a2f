"""A checkpoint holds the state of its moment, however late the copies to the host are made: seen without a device."""

from dataclasses import replace

import pytest

from dist_imsr.benchmarks.ranks import LocalRanks
from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.model.detector import DetectorConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.trimmer import TrimmerConfig
from dist_imsr.strategies import StrategyConfig
from dist_imsr.strategies.imsr import IMSRConfig
from dist_imsr.training.checkpoint import CheckpointConfig, newest_first
from dist_imsr.training.config import TrainConfig, TrainingConfig
from dist_imsr.training.storage import Stored
from tests.late_copies import late_copies
from tests.prepared import drawn_history, write_dataset
from tests.runs import run

GROWING = IMSRConfig(
    1.0,
    DetectorConfig(measure="divergence", rule="mean", c1=0.02, untrained=True, delta_k=2, k_max=9, epochs=None),
    TrimmerConfig(c2=0.1),
)


def _late(topology, config):
    with late_copies() as late:
        return run(topology, config), late.awaited


def _contents(run_dir):
    """The bytes of all tensors and tables of a run's checkpoints, by path."""
    folder = run_dir / "checkpoints"
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.suffix in (".bin", ".arrow")
    }


@pytest.mark.parametrize(("base", "strategy"), [("comirec_sa", "imsr"), ("comirec_sa", "sml"), ("comirec_dr", "ader")])
def test_late_copies_change_no_checkpoint(tmp_path, base, strategy):
    folder = write_dataset(tmp_path / "data", drawn_history(users=40, items=80, spans=4, longest=12))
    config = TrainConfig(
        data=DataConfig(folder),
        run_dir=tmp_path / "wanted",
        model=ModelConfig(base, dim=8, interests=3),
        strategy=StrategyConfig(strategy, GROWING),
        batch=BatchConfig(size=8, max_history=10, max_targets=3, negatives=20, eval_size=16),
        catalogue=CatalogueConfig(headroom=0.05),
        training=TrainingConfig(epochs=2, incremental_epochs=3, patience=1),
        eval=EvalConfig([5]),
        checkpoint=CheckpointConfig(every_steps=2, keep_last=1000),
    )
    late = replace(config, run_dir=tmp_path / "late")
    with LocalRanks(1, seconds=240) as ranks:
        [wanted] = ranks.call(run, config)
        [(found, waited)] = ranks.call(_late, late)
        assert waited > 50
        assert found == wanted
        contents = _contents(late.run_dir)
        assert contents == _contents(config.run_dir)
        assert len(contents) > 50
        apart = [
            path
            for path in newest_first(late.run_dir / "checkpoints")
            if Stored(path).manifest["snapshot"] in ("apart", "interests apart")
        ]
        resumed = replace(config, run_dir=tmp_path / "resumed", resume=str(apart[0]))
        assert ranks.call(_late, resumed)[0][0] == wanted
