import json
import subprocess
import sys
from pathlib import Path

import pytest

SHIPPED = Path(__file__).parents[2]

# In a process of its own, one world after the other.
DRY = """
import json, sys
from dist_imsr.config import resolve
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.dry_run import dry_run
from dist_imsr.planning.load import spans_of, widest_step
from dist_imsr.planning.memory import activation_bytes
for line in sys.argv[1:]:
    config = resolve(PlanConfig, line.split())
    dry = dry_run(config, widest_step(config, spans_of(config)))
    print(json.dumps([dry.ranks, dry.step.users, dry.exchanges, dry.activations, activation_bytes(config, dry.step)]))
"""

WORLDS = {
    "--model.base comirec_dr --batch.size 64": [1, 64, 0],
    "--model.base mind --gpus_per_node 8 --batch.size 4096": [8, 128, 5],
    "--model.base comirec_sa --nodes 64 --gpus_per_node 8 --batch.size 16384": [512, 32, 5],
    "--nodes 2 --batch.size 64 --engine.deepspeed configs/deepspeed/zero2.json": [2, 32, 5],
    "--nodes 64 --gpus_per_node 8 --batch.size 8192 --batch.negatives 10": [512, 16, 5],
    "--model.base limarec --strategy.name life_long --batch.size 32": [1, 32, 0],
}


def test_steps_run_in_worlds_that_are_not_there():
    ran = subprocess.run([sys.executable, "-c", DRY, *WORLDS], capture_output=True, text=True, cwd=SHIPPED)
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("[")]
    assert [line[:3] for line in lines] == list(WORLDS.values())
    for *_, measured, estimated in lines:
        assert estimated == pytest.approx(measured, rel=0.25)
