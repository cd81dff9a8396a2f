import re
from dataclasses import replace

import pytest

from dist_imsr.config import resolve
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.limits import limits, refusal, shortfalls, smallest_nodes
from dist_imsr.planning.placement import place
from dist_imsr.planning.plan import make_plan

BILLIONS = ["--items=2000000000", "--users=500000000", "--dim=64", "--gpus_per_node=8", "--dry_run=false"]
TOO_LARGE = {
    "table": [*BILLIONS, "--nodes=2"],
    "store": ["--items=1000000", "--users=300000000", "--gpus_per_node=8", "--store.memory=device", "--dry_run=false"],
    "host": ["--users=60000000", "--gpu=cpu", "--gpus_per_node=4", "--dry_run=false"],
    "batch": ["--batch.size=400000", "--gpu=rtx2080ti", "--dry_run=false"],
    "bucket": ["--gpu=a100-40", "--hardware.memory=4500000000", "--engine.deepspeed={folder}/zero.json"],
}
ZERO = '{"zero_optimization": {"stage": 1}, "optimizer": {"type": "Adam"}}'  # with DeepSpeed's own bucket


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_refusal_names_the_resource_and_what_then_fits(name, tmp_path):
    (tmp_path / "zero.json").write_text(ZERO)
    argv = [*(argument.format(folder=tmp_path) for argument in TOO_LARGE[name]), "--dry_run=false"]
    config = resolve(PlanConfig, argv)
    found = shortfalls(config)
    assert found
    text = str(refusal(config, found))
    assert found[0].resource in text
    assert "\n" not in text
    assert "GB needed" in text
    remedies = re.findall(r"--\S+ [^,\s]+", text.partition("it would fit with ")[2])
    assert remedies
    for remedy in remedies:
        key, value = remedy.split()
        assert not shortfalls(resolve(PlanConfig, [*argv, f"{key}={value}"])), remedy


def test_the_fewest_nodes_are_the_fewest():
    config = resolve(PlanConfig, TOO_LARGE["table"])
    nodes = smallest_nodes(config)
    assert not shortfalls(replace(config, nodes=nodes))
    assert shortfalls(replace(config, nodes=nodes - 1))


def test_limits_fit_and_a_little_more_does_not():
    config = resolve(PlanConfig, [*BILLIONS, "--nodes=64"])
    for limit in limits(config):
        assert limit.most > limit.now
        assert limit.breaks
        if limit.key in ("items", "users"):
            assert not shortfalls(replace(config, **{limit.key: limit.most}))
            assert shortfalls(replace(config, **{limit.key: round(1.01 * limit.most)}))


def test_torchrecs_planner_places_the_table_on_all_ranks():
    config = resolve(PlanConfig, [*BILLIONS, "--nodes=64"])
    placed = place(config, 2_000_000_000)
    assert placed.sharding == "row_wise"
    assert placed.kernel == "fused"
    assert [rank for _, rank in placed.shards] == list(range(512))
    assert sum(rows for rows, _ in placed.shards) == 2_000_000_000


def test_a_table_that_torchrec_would_keep_on_the_host_is_refused():
    # Weights alone take more than the 85 % of the memory that its planner gives away.
    section = CatalogueConfig(optimizer="sgd", headroom=0.0)
    argv = ["--items=277500000", "--users=1000", "--dim=64", "--training.patience=0", "--reserve=0", "--dry_run=false"]
    config = replace(resolve(PlanConfig, [*argv, "--load.new_items=0"]), catalogue=section)
    with pytest.raises(ValueError, match=r"TorchRec.s planner: 75\.5 GB needed, 67\.6 GB there"):
        make_plan(config)
