import json
import subprocess
import sys
from pathlib import Path

import pytest

SHIPPED = Path(__file__).parents[2]

DRY = """
import json, sys
from dist_imsr.config import resolve
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.dry_run import dry_run
from dist_imsr.planning.load import spans_of, widest_step
from dist_imsr.planning.memory import activation_bytes
config = resolve(PlanConfig, sys.argv[1:])
dry = dry_run(config, widest_step(config, spans_of(config)))
print(json.dumps([dry.ranks, dry.step.users, dry.activations, activation_bytes(config, dry.step), dry.exchanges]))
"""


@pytest.mark.parametrize(
    ("arguments", "ranks", "users", "exchanges"),
    [
        ("--model.base comirec_dr --batch.size 64", 1, 64, 0),
        ("--model.base mind --gpus_per_node 8 --batch.size 4096", 8, 128, 5),
        ("--model.base comirec_sa --nodes 64 --gpus_per_node 8 --batch.size 32768", 512, 64, 5),
        ("--model.base comirec_dr --nodes 2 --batch.size 64 --engine.deepspeed configs/deepspeed/zero2.json", 2, 32, 5),
        ("--model.base limarec --strategy.name life_long --batch.size 32", 1, 32, 0),
    ],
)
def test_a_step_runs_in_a_world_that_is_not_there(arguments, ranks, users, exchanges):
    ran = subprocess.run([sys.executable, "-c", DRY, *arguments.split()], capture_output=True, text=True, cwd=SHIPPED)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    measured, estimated = told[2:4]
    assert told[:2] + told[4:] == [ranks, users, exchanges]
    assert estimated == pytest.approx(measured, rel=0.25)
