from dataclasses import replace
from unittest.mock import patch

import pytest

from dist_imsr import devices
from dist_imsr.config import parse
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.distributed import catalogue
from dist_imsr.planning.placement import planner_memory
from dist_imsr.planning.plan import plan_of
from dist_imsr.strategies.resources import Resources
from dist_imsr.strategies.step_memory import bytes_alongside_table
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.trainer import Trainer
from tests.prepared import drawn_history, write_dataset
from tests.ranks import run_ranks


def _config(*arguments):
    return parse(TrainConfig, ["--data.path=data", "--run_dir=run", "--model.dim=8", *arguments])


def test_everything_that_a_step_may_need_counts():
    config = _config("--batch.size=64", "--batch.eval_size=64")

    def alongside(*arguments, resources=None, ranks=1):
        changed = _config("--batch.size=64", "--batch.eval_size=64", *arguments)
        return bytes_alongside_table(changed, resources or Resources(), ranks)

    plain = bytes_alongside_table(config, Resources(), 1)
    assert plain > config.ranking.memory << 20
    assert alongside(ranks=2) < plain
    for argument in ("batch.size=65", "batch.eval_size=2000", "batch.max_history=900", "batch.negatives=2000"):
        assert alongside(f"--{argument}") > plain, argument
    assert alongside("--engine.deepspeed=configs/deepspeed/zero1.json") == plain + 20_000_000
    assert alongside("--ranking.memory=257") == plain + (1 << 20)
    assert alongside(resources=Resources(replayed=1)) > plain
    assert alongside(resources=replace(Resources(), tables=2)) == plain


def _memory_of_run(topology, config, size):
    """What TorchRec's planner gets in a run on a device of this size."""
    with patch.object(catalogue, "PlannerTopology", wraps=catalogue.PlannerTopology) as made:
        with patch.object(devices, "memory_bytes", return_value=size):
            Trainer(config, Dataset(config.data), topology)
    return [call.kwargs["hbm_cap"] for call in made.call_args_list]


@pytest.mark.parametrize("strategy", ["imsr", "sml"])
def test_a_plan_gives_torchrecs_planner_what_a_run_gives(tmp_path, strategy):
    folder = write_dataset(tmp_path / "data", drawn_history(users=30, items=80, spans=3, longest=8))
    config = replace(_config(f"--strategy.name={strategy}"), data=DataConfig(folder), run_dir=tmp_path / "run")
    plan = plan_of(Dataset(config.data), config, 2, "rtx2080ti").memory.config
    memory = planner_memory(plan)
    assert 0 < memory < plan.device.memory / (3 if strategy == "sml" else 1)
    assert run_ranks(2, _memory_of_run, config, plan.device.memory) == [[memory], [memory]]
