"""The lines under a run's table: the spans that were tested, counted once."""

import json
from dataclasses import replace

import pytest

from dist_imsr.baselines.config import BaselinesConfig
from dist_imsr.baselines.measure import measure_baselines
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.training.baselines import add_baselines, describe_baselines
from dist_imsr.training.config import TrainConfig
from tests.prepared import drawn_history, retire_before, write_dataset
from tests.ranks import ranks_on


@pytest.fixture
def config(tmp_path):
    write_dataset(tmp_path / "data", drawn_history())
    (tmp_path / "run").mkdir()
    return TrainConfig(data=DataConfig(tmp_path / "data"), run_dir=tmp_path / "run", eval=EvalConfig([5]))


def _added(topology, config, spans):
    dataset = Dataset(config.data)
    add_baselines(config, dataset, spans, topology)
    return describe_baselines(config, dataset, spans)


def _measured(topology, config):
    sections = BaselinesConfig(config.data, baselines=["popular", "own_history"]).sections
    return measure_baselines(
        sections, dataset=Dataset(config.data), spans=[1, 2], topology=topology, config=config.eval
    )


def test_each_tested_span_is_added_once(config):
    file = config.run_dir / "baselines.jsonl"
    with ranks_on(2) as ranks:
        ranks.call(_added, config, [1])
        (first,) = {line["span"] for line in map(json.loads, file.read_text().splitlines())}
        both, _ = ranks.call(_added, config, [1, 2])  # an append brought the second one
        stamp = file.stat().st_mtime_ns
        assert ranks.call(_added, config, [1, 2]) == [both, both]
        expected, _ = ranks.call(_measured, config)
    assert (first, file.stat().st_mtime_ns) == (1, stamp)
    popular, own = both.splitlines()
    for text, name in ((popular, "popular"), (own, "own_history")):
        for key in ("hr@5", "ndcg@5", "hr@5_unseen"):
            mean = sum(line[key] for line in expected if line["strategy"] == name) / 2
            assert f"{key} {mean:.4f}" in text


def test_why_there_are_none(config):
    dataset = Dataset(config.data)
    assert "lacks some lines of baselines.jsonl" in describe_baselines(config, dataset, [1])
    assert describe_baselines(config, dataset, []) == ""
    assert describe_baselines(replace(config, baselines=False), dataset, [1]) == ""
    retire_before(config.data.path, 1)
    with ranks_on(1) as ranks:
        (text,) = ranks.call(_added, config, [2])
    assert "the rows before span 1 of" in text
    assert not (config.run_dir / "baselines.jsonl").exists()
