import json
import subprocess
import sys
from pathlib import Path

import pytest

SHIPPED = Path(__file__).parents[2]

# Runs in its own process, one world after the other.
DRY = """
import json, sys
from dist_imsr.config import resolve
from dist_imsr.planning.config import PlanConfig
from dist_imsr.model.extractors import build_extractor
from dist_imsr.planning.dry_run import dry_run, simulated_step
from dist_imsr.planning.load import spans_of, widest_step
from dist_imsr.strategies.step_memory import activation_bytes, gradient_bucket
from tests.memory_profile import MEASURED, memory_profile
from torch.profiler import record_function
for line in sys.argv[1:]:
    config = resolve(PlanConfig, line.split())
    dry = dry_run(config, widest_step(config, spans_of(config)))
    with memory_profile() as peak_bytes, simulated_step(config, dry.step) as take_step:
        take_step()
        with record_function(MEASURED):
            sent = take_step()
    assert (sum(sent), len(sent)) == (dry.sent, dry.exchanges)
    estimated = activation_bytes(config.model.row_width, build_extractor(config.model), dry.step)
    print(json.dumps([dry.ranks, dry.step.users, dry.exchanges, peak_bytes(gradient_bucket(config.engine)), estimated]))
"""

WORLDS = {
    "--model.base comirec_dr --batch.size 64": [1, 64, 0],
    "--model.base mind --gpus_per_node 8 --batch.size 4096": [8, 128, 5],
    "--model.base comirec_sa --nodes 64 --gpus_per_node 8 --batch.size 16384": [512, 32, 5],
    "--nodes 2 --batch.size 64 --engine.deepspeed configs/deepspeed/zero2.json": [2, 32, 5],
    "--nodes 64 --gpus_per_node 8 --batch.size 8192 --batch.negatives 10": [512, 16, 5],
    "--model.base limarec --strategy.name life_long --batch.size 32": [1, 32, 0],
}


def test_steps_run_in_simulated_worlds():
    ran = subprocess.run([sys.executable, "-c", DRY, *WORLDS], capture_output=True, text=True, cwd=SHIPPED)
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("[")]
    assert [line[:3] for line in lines] == list(WORLDS.values())
    for *_, measured, estimated in lines:
        assert estimated == pytest.approx(measured, rel=0.25)
