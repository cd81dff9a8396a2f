"""No operation of a run mixes the host's tensors with those of a device: seen without one, apart from the libraries."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import deepspeed
import pytest
import torch
from torchrec import JaggedTensor

from dist_imsr.benchmarks.ranks import LocalRanks
from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig
from dist_imsr.distributed import columns, recommender
from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.distributed.interest_store import InterestStoreConfig
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.evaluation import counting, ranking
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.tiles import Pairs
from dist_imsr.model.detector import DetectorConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.mimn import MIMNConfig
from dist_imsr.model.retainers import RetainerConfig
from dist_imsr.model.trimmer import TrimmerConfig
from dist_imsr.strategies import StrategyConfig
from dist_imsr.strategies.imsr import IMSRConfig
from dist_imsr.strategies.sml import SMLConfig
from dist_imsr.training.config import TrainConfig, TrainingConfig
from dist_imsr.training.run import begin, check
from tests.prepared import drawn_history, write_dataset
from tests.runs import timeless
from tests.second_device import DEVICE, DeviceTensor, counted_waits, cpu_values, second_device, uncounted

_HOST = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"), drawn_history(users=40, items=80, spans=4, longest=12))


@pytest.fixture(scope="module")
def rank():
    with LocalRanks(1, seconds=120) as ranks:
        yield ranks


class _Table:
    """A catalogue on the CPU whose results are on the second device."""

    def __init__(self, config, items, dim, seed, topology, *sizes, **options):
        self.topology = topology
        self._table = Catalogue(config, items, dim, seed, replace(topology, device=_HOST), *sizes, **options)

    def __getattr__(self, name):
        return getattr(self._table, name)

    def flushed_weight(self):
        return DeviceTensor(self._table.flushed_weight())

    def flushed_state(self):
        state = self._table.flushed_state().items()
        return {name: ShardRows(DeviceTensor(rows.values), rows.first, rows.total) for name, rows in state}

    @property
    def steps(self):
        return self._table.steps

    @steps.setter
    def steps(self, steps):
        self._table.steps = steps

    def lookup(self, *sequences):
        assert all(isinstance(part, DeviceTensor) for one in sequences for part in (one.values(), one.lengths()))
        requests = (JaggedTensor(cpu_values(one.values()), lengths=cpu_values(one.lengths())) for one in sequences)
        with uncounted():
            return [found.to(DEVICE) for found in self._table.lookup(*requests)]

    def start_lookup(self, *sequences):
        """The lookup itself requests the rows."""

    def frozen_copy(self):
        frozen = object.__new__(_Table)
        frozen.topology, frozen._table = self.topology, self._table.frozen_copy()
        return frozen


class _Dense:
    """What DeepSpeed's engine does with one rank."""

    def __init__(self, model, parameters):
        self.module, self.optimizer = model, torch.optim.Adam(parameters)
        self.monitor = SimpleNamespace(tb_monitor=None, write_events=lambda events: None)

    def __call__(self, *inputs, **options):
        return self.module(*inputs, **options)

    def scale(self, loss):
        return loss

    def gradient_accumulation_steps(self):
        return 1

    def torch_autocast_enabled(self):
        return False

    def train(self, training):
        self.module.train(training)

    def backward(self, loss):
        self.optimizer.zero_grad()
        loss.backward()

    def step(self):
        with uncounted():  # DeepSpeed's is fused
            self.optimizer.step()


def _initialize(model, model_parameters, config):
    return (_Dense(model, model_parameters),)


def _count_better(shard, users, owners, items, scores, ties, excluded):
    """The host's count of better items, in the place of the device's kernel."""
    host = [cpu_values(one) for one in (users, owners, items, scores, ties)]
    pairs = Pairs(cpu_values(excluded.rows), cpu_values(excluded.items))
    return counting.count_better(shard._replace(weight=cpu_values(shard.weight)), *host, pairs).to(users.device)


def _runs(topology, config, *devices):
    """A run that is continued from its checkpoint for another span, each span on a device.

    Returns:
        Its lines, its interests, and the waits of the training steps in each span.
    """
    lines, waits, engine = [], [], patch.object(deepspeed, "initialize", _initialize)
    train_step = Recommender.train_step

    def counted_step(self, *arguments, **options):
        with counted_waits() as counted:
            reported = train_step(self, *arguments, **options)
        waits[-1].append(counted)
        return reported

    kernel = patch.object(ranking, "count_better", _count_better)
    with second_device(), engine, kernel, patch.dict(columns.PART, {DEVICE.type: columns.PART["cuda"]}):
        for spans, device in enumerate(devices, 1):
            config = replace(config, training=replace(config.training, spans=spans))
            with patch("dist_imsr.devices.device_count", return_value=int(device == DEVICE)):
                dataset, candidates = check(config)
            config.run_dir.mkdir(exist_ok=True)
            waits.append([])
            table = patch.object(recommender, "Catalogue", Catalogue if device == _HOST else _Table)
            with table, patch.object(Recommender, "train_step", counted_step):
                trainer = begin(config, dataset, candidates, replace(topology, device=device), None)
                lines.append(timeless(trainer.run()))
    store = trainer.model.store
    kept, far = (
        {"offsets": store.offsets, **store.slots._asdict()},
        device == DEVICE and config.store.memory != "host",
    )
    assert all(isinstance(one, DeviceTensor) == far for one in kept.values())
    return lines, {name: cpu_values(one) for name, one in kept.items()}, waits


_STAND_INS = {
    "to the device in columns.send_to",  # on CUDA, `devices.pin` makes it asynchronous
    "from the device in engine.update",  # gradients of `_Table`
}
_COUNTS, _QUERIES = "from the device in interest_store.layout", "from the device in interest_store.update_queries"
_GROWING = IMSRConfig(
    1.0,
    DetectorConfig(measure="divergence", rule="mean", c1=0.02, untrained=True, delta_k=2, k_max=5),
    TrimmerConfig(c2=0.1),
    RetainerConfig("kd2", weight=0.5),
)


@pytest.mark.parametrize(
    ("base", "strategy", "memory"),
    [
        ("comirec_dr", StrategyConfig("imsr", _GROWING), "device"),
        ("comirec_dr", StrategyConfig("imsr", _GROWING), "host"),
        ("comirec_sa", StrategyConfig("imsr", _GROWING), "device"),
        ("comirec_sa", StrategyConfig("imsr", _GROWING), "host"),
        ("mind", StrategyConfig("ader"), "device"),
        ("comirec_dr", StrategyConfig("sml", sml=SMLConfig(epochs=1)), "device"),
        ("comirec_sa", StrategyConfig("full_retraining"), "device"),
        ("mimn", StrategyConfig("life_long"), "device"),
        ("limarec", StrategyConfig("life_long"), "host"),
    ],
)
def test_no_operation_mixes_devices(folder, rank, tmp_path, base, strategy, memory):
    config = TrainConfig(
        data=DataConfig(folder),
        run_dir=tmp_path / "host",
        model=ModelConfig(base, dim=8, interests=2, mimn=MIMNConfig(memory=4, controller=4, induction=4)),
        strategy=strategy,
        batch=BatchConfig(size=16, max_history=6, max_targets=3, negatives=20, eval_size=16),
        catalogue=CatalogueConfig(headroom=0.0),
        store=InterestStoreConfig(memory),
        training=TrainingConfig(epochs=2, incremental_epochs=2, export="every"),
        eval=EvalConfig([5], exclude_seen=True, per_user=True),
    )
    [host] = rank.call(_runs, config, _HOST, _HOST)
    [device] = rank.call(_runs, replace(config, run_dir=tmp_path / "device"), DEVICE, DEVICE)
    _assert_same(host, device)
    assert not any(waits for span in host[2] for waits in span)
    assert device[2][0]
    for number, span in enumerate(device[2]):
        waits = [waits.keys() - _STAND_INS for waits in span]
        allowed = {_COUNTS} | ({_QUERIES} if base == "comirec_sa" and memory == "host" else set())
        assert all(names <= allowed for names in waits), (number, waits)
        assert not waits or any(_COUNTS not in names for names in waits)  # once for each change of the interests


def test_a_run_of_the_host_resumes_on_a_device(folder, rank, tmp_path):
    config = TrainConfig(
        data=DataConfig(folder),
        run_dir=tmp_path / "host",
        model=ModelConfig("comirec_sa", dim=8, interests=2),
        batch=BatchConfig(size=16, max_history=6, max_targets=3, negatives=20, eval_size=16),
        training=TrainingConfig(epochs=2, incremental_epochs=2),
        eval=EvalConfig([5]),
    )
    [host] = rank.call(_runs, config, _HOST, _HOST)
    [moved] = rank.call(_runs, replace(config, run_dir=tmp_path / "moved"), _HOST, DEVICE)
    _assert_same(host, moved)


def _assert_same(host, device):
    assert device[0] == host[0]
    for name, values in host[1].items():
        assert torch.equal(device[1][name], values), name
