import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from dist_imsr.benchmarks.ranks import LocalRanks
from dist_imsr.distributed.engine import DenseEngine, EngineConfig, read_settings
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.routing import DynamicRouting
from tests.devices import on
from tests.ranks import on_devices, run_ranks

SHIPPED = Path(__file__).parents[2] / "configs" / "deepspeed"


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"fp16": {"enabled": True}}, "fp16"),
        ({"zero_optimization": {"stage": 3}}, r"zero_optimization\.stage"),
        ({"optimizer": {"type": "AdamW"}}, r"optimizer\.type"),
        ({"optimizer": {"type": "Adam", "params": {"lr": 1.0}}}, r"optimizer\.params\.lr"),
    ],
)
def test_settings_that_break_training_with_a_sharded_table_are_refused(tmp_path, settings, key):
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps({"optimizer": {"type": "Adam"}} | settings))
    with pytest.raises(ValueError, match=rf"deepspeed\.json: {key}"):
        EngineConfig(deepspeed=path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_files_without_settings_are_refused(tmp_path, text):
    path = tmp_path / "deepspeed.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"engine\.deepspeed: .*deepspeed\.json"):
        EngineConfig(deepspeed=path)
    with pytest.raises(ValueError, match=r"engine\.deepspeed: .*nothing"):
        EngineConfig(deepspeed=tmp_path / "nothing")


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_settings_name_every_dangerous_default(path):
    settings = json.loads(path.read_text())
    assert settings["gradient_clipping"] == 0.0
    assert settings["optimizer"]["params"] == {"torch_adam": True, "adam_w_mode": False, "weight_decay": 0.0}
    assert read_settings(path) == settings | {"train_micro_batch_size_per_gpu": 1}


def test_dangerous_defaults_of_deepspeed_are_replaced(tmp_path):
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps({"optimizer": {"type": "Adam"}}))
    settings = read_settings(path)
    assert settings["gradient_clipping"] == 0.0
    assert settings["optimizer"]["params"] == {"torch_adam": True, "adam_w_mode": False, "weight_decay": 0.0}


class _Inputs(NamedTuple):
    items: torch.Tensor
    mask: torch.Tensor
    start: Start


def _shifted(weights):
    """A substitution through which gradients reach the parameters unchanged."""
    return {name: weight + 0.25 for name, weight in weights.items()}


def _train(topology, name, steps=5, substitution=None, offset=0.0):
    """Trains W on items that differ between ranks; returns W of every step, and checks the names of the weights."""
    config = EngineConfig(Path(SHIPPED, name).with_suffix(".json"))
    engine = DenseEngine(DynamicRouting(8), config, topology.device, None)
    engine.set_learning_rate(0.05)
    engine.assign({name: weight + offset for name, weight in engine.module.named_parameters()})
    weights = []
    for step in range(steps):
        draw = torch.Generator().manual_seed(step)
        items = torch.randn(12, 3, 8, generator=draw)[topology.rank :: topology.world_size]
        mask = torch.ones(items.shape[:2], dtype=torch.bool)
        stored = torch.ones(len(items), 2, 8), torch.ones(len(items), 2, dtype=torch.bool)
        inputs = on(topology.device, _Inputs(items, mask, Start(Interests(*stored))))
        interests = engine(*inputs, weights=substitution)
        assert interests.vectors.dtype == torch.float32
        engine.update((interests.vectors - 1).square().sum() * topology.world_size / 12)
        weights.append(engine.module.transform.weight.detach().cpu().clone())
    return weights


@on_devices("world_size", cpu=[2], cuda=[1, 2])
def test_data_parallel_equals_one_rank_and_plain_adam(device, world_size):
    (alone,) = run_ranks(1, _train, "zero0", device=device)
    module = DynamicRouting(8)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for step, found in enumerate(alone):
        items = torch.randn(12, 3, 8, generator=torch.Generator().manual_seed(step))
        start = Start(Interests(torch.ones(12, 2, 8), torch.ones(12, 2, dtype=torch.bool)))
        optimizer.zero_grad()
        ((module(items, torch.ones(12, 3, dtype=torch.bool), start).vectors - 1).square().sum() / 12).backward()
        optimizer.step()
        torch.testing.assert_close(found, module.transform.weight.detach(), rtol=1e-5, atol=1e-6)
    for name in ("zero0", "zero1", "zero2"):
        for weights in run_ranks(world_size, _train, name, device=device):
            torch.testing.assert_close(weights, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2"])
def test_substitute_weights_get_the_gradients_of_the_parameters(name):
    """Parameters that are 0.25 lower, and seen 0.25 higher, train as the parameters themselves."""
    plain = run_ranks(2, _train, name)
    substituted = run_ranks(2, _train, name, 5, _shifted, -0.25)
    for expected, found in zip(plain, substituted, strict=True):
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other + 0.25, one, rtol=1e-4, atol=1e-5)


def _names(topology):
    """The names in a checkpoint, the module's outputs with and without substitutes, and those expected."""
    module = DynamicRouting(8)
    engine = DenseEngine(module, EngineConfig(), topology.device, None)
    assert engine.module is module
    stored = Interests(torch.ones(2, 2, 8), torch.ones(2, 2, dtype=torch.bool))
    inputs = torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool), Start(stored)
    with torch.no_grad():
        outputs = [engine(*inputs).vectors, engine(*inputs, weights=_shifted).vectors]
        before = {name: weight.clone() for name, weight in module.named_parameters()}
        expected = [module(*inputs).vectors]
        engine.assign(_shifted(before))
        expected.append(module(*inputs).vectors)
    return set(engine.state()), outputs, expected


def test_substitute_weights_change_neither_the_module_nor_names_in_checkpoints():
    ((names, outputs, expected),) = run_ranks(1, _names)
    weights = {name for name, _ in DynamicRouting(8).named_parameters()}
    assert names == weights | {f"{name}.{part}" for name in weights for part in ("exp_avg", "exp_avg_sq", "step")}
    for found, correct in zip(outputs, expected, strict=True):
        torch.testing.assert_close(found, correct)
    assert not torch.equal(*outputs)


def _uses_world_group(topology):
    engine = DenseEngine(DynamicRouting(8), EngineConfig(), topology.device, None)
    return engine._engine.data_parallel_group is torch.distributed.group.WORLD


def test_deepspeed_waits_for_a_rank_as_long_as_the_world_group():
    assert run_ranks(2, _uses_world_group) == [True, True]


def _refusal(topology, settings):
    path = Path(tempfile.mkdtemp()) / "deepspeed.json"
    path.write_text(json.dumps({"optimizer": {"type": "Adam"}} | settings))
    with pytest.raises(ValueError, match=r"engine\.deepspeed: .*deepspeed\.json: ") as refused:
        DenseEngine(DynamicRouting(8), EngineConfig(path), topology.device, None)
    return str(refused.value)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, "multiply the loss by 65536"),
        ({"torch_autocast": {"enabled": True, "dtype": "half"}}, "multiply the loss by 65536"),
        *(
            (
                {"torch_autocast": {"enabled": True, "dtype": "fp16"}, "zero_optimization": {"stage": stage}},
                "multiply the loss by 65536",
            )
            for stage in (1, 2)
        ),
        ({"train_batch_size": 4}, "multiply the loss by 0.25"),
        ({"bf16": {"enabled": True}}, "the dense weights would be torch.bfloat16"),
        ({"bfloat16": {"enabled": True}, "zero_optimization": {"stage": 2}}, "would be torch.bfloat16"),
        ({"train_batch_size": 3, "gradient_accumulation_steps": 1}, "[Bb]atch"),
    ],
)
def test_a_built_engine_that_scales_the_loss_or_rounds_the_weights_is_refused(settings, why):
    with LocalRanks(1, seconds=120) as ranks:  # its own process: DeepSpeed keeps the precision in globals
        assert re.search(why, ranks.call(_refusal, settings)[0])


@pytest.mark.parametrize("form", ["bf16", "torch.bfloat16", None])
@pytest.mark.parametrize("stage", [0, 2])
def test_every_name_of_bf16_is_the_same(tmp_path, form, stage):
    settings = json.loads((SHIPPED / "bf16.json").read_text()) | {"zero_optimization": {"stage": stage}}
    paths = [tmp_path / f"{name}.json" for name in ("long", "other")]
    for path, name in zip(paths, ("bfloat16", form), strict=True):
        autocast = {"enabled": True} | ({"dtype": name} if name else {})
        path.write_text(json.dumps(settings | {"torch_autocast": autocast}))
    expected, found = (run_ranks(1, _train, path)[0] for path in paths)
    assert all(map(torch.equal, found, expected))


def _precisions(topology, path):
    engine = DenseEngine(DynamicRouting(8), EngineConfig(path), topology.device, None)
    with engine.precision():
        return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


def test_forward_passes_past_the_engine_have_its_precision():
    assert run_ranks(1, _precisions, SHIPPED / "bf16.json", fresh=True) == [torch.bfloat16]
    assert run_ranks(1, _precisions, SHIPPED / "zero0.json", fresh=True) == [torch.float32]


@on_devices("world_size", cpu=[2], cuda=[1])
def test_bf16_stays_near_fp32(device, world_size):
    runs = (run_ranks(world_size, _train, name, device=device) for name in ("bf16", "zero0"))
    for half, single in zip(*runs, strict=True):
        torch.testing.assert_close(half[-1], single[-1], rtol=0.1, atol=0.1)
        assert not torch.equal(half[-1], single[-1])


class _Waits(TorchDispatchMode):
    """Counts operations for which the host would wait for a CUDA device."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "is_nonzero", "equal"):
            self.counted[name] += 1
        return operator(*args, **kwargs or {})


def _waits(topology, name, steps=5):  # DeepSpeed's timers start after the second one
    engine = DenseEngine(DynamicRouting(8), EngineConfig(SHIPPED / f"{name}.json"), topology.device, None)
    stored = Interests(torch.ones(2, 2, 8), torch.ones(2, 2, dtype=torch.bool))
    for _ in range(steps):
        with _Waits() as waits, patch.object(get_accelerator(), "synchronize") as synchronize:
            interests = engine(torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool), Start(stored))
            engine.update(interests.vectors.square().sum())
    return dict(waits.counted) | {"synchronize": synchronize.call_count}


@pytest.mark.parametrize(("name", "most"), [("zero0", 0), ("bf16", 0), ("zero1", 1), ("zero2", 1)])
def test_deepspeed_waits_no_more_often_than_the_documents_say(name, most):
    for counted in run_ranks(2, _waits, name):
        assert sum(counted.values()) <= most, counted
