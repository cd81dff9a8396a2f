from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.profiler import record_function

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.user_ids import OwnedUsers
from dist_imsr.distributed import rows
from dist_imsr.distributed.catalogue import Catalogue, CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.distributed.interest_store import InterestStore, InterestStoreConfig
from dist_imsr.model.detector import DetectorConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.trimmer import TrimmerConfig
from dist_imsr.planning import memory
from dist_imsr.planning.config import LoadConfig, PlanConfig
from dist_imsr.planning.load import spans_of
from dist_imsr.planning.memory import MemoryModel, row_wise, total
from dist_imsr.planning.placement import shard_of
from dist_imsr.strategies import StrategyConfig
from dist_imsr.strategies.imsr import IMSRConfig
from dist_imsr.strategies.step_memory import gradient_bucket
from dist_imsr.training.checkpoint import CheckpointConfig
from dist_imsr.training.config import TrainConfig, TrainingConfig
from dist_imsr.training.trainer import Trainer
from tests.memory_profile import MEASURED, memory_profile
from tests.prepared import drawn_history, write_dataset
from tests.ranks import run_ranks

USERS, ITEMS, SPANS, RANKS = 600, 4000, 3, 2
PART = 1 << 16  # bytes


def _allocated(topology, config):
    """Trains all spans; returns the bytes of this rank's tensors, and how many interests a user has over the world."""
    trainer = Trainer(config, Dataset(config.data), topology)
    lines = trainer.run()
    catalogue, store = trainer.model.catalogue, trainer.model.store
    measured = {name: rows.values.untyped_storage().nbytes() for name, rows in catalogue.flushed_state().items()}
    weight = measured.pop("weight")
    slots = sum(tensor.numel() * tensor.element_size() for tensor in (*store.slots, store.offsets))
    snapshot = trainer.model.snapshot()
    copied = [rows.values for rows in snapshot.tensors.values()] + [snapshot.store.queries]
    copies = sum(tensor.untyped_storage().nbytes() for tensor in copied)
    measured = {"weight": weight, "optimizer": sum(measured.values()), "store": slots, "copy": copies}
    return measured, lines[-1]["interests_mean"]


@pytest.mark.parametrize(("base", "optimizer"), [("comirec_dr", "rowwise_adagrad"), ("comirec_sa", "adagrad")])
def test_table_optimizer_and_store_are_what_a_run_allocates(tmp_path, base, optimizer):
    history = drawn_history(users=USERS, items=ITEMS, spans=SPANS + 1, longest=12)
    folder = write_dataset(tmp_path / "data", history)
    policy = IMSRConfig(detector=DetectorConfig(c1=0.5, untrained=True, delta_k=2), trimmer=TrimmerConfig(trim=False))
    sections = {
        "model": ModelConfig(base=base, dim=32),
        "strategy": StrategyConfig(imsr=policy),
        "catalogue": CatalogueConfig(optimizer=optimizer),
        "training": TrainingConfig(epochs=1, incremental_epochs=1, export="none"),
    }
    run = TrainConfig(DataConfig(folder), tmp_path, checkpoint=CheckpointConfig(enabled=False), **sections)
    ranks = run_ranks(RANKS, _allocated, run, fresh=True)
    interests = ranks[0][1]
    assert interests > 4.2  # else the growth is not seen

    # The load of these data: items, users, how many are active, and how many interests they gain.
    dataset = Dataset(DataConfig(folder))
    active = sum(any(user[span]) for user in history.values() for span in range(1, SPANS)) / USERS / (SPANS - 1)
    gained = (interests - 4) / active / (SPANS - 1)
    load = LoadConfig(active=active, new_items=1 / (SPANS + 1), new_interests=gained)
    where = {"nodes": 1, "gpus_per_node": RANKS, "gpu": "cpu"}
    plan = PlanConfig(dataset.items_by_span[-1], USERS, spans=SPANS, load=load, **where, **sections)
    spans = spans_of(plan)
    planner = MemoryModel(plan, spans, shard_of(plan))
    weight, state = planner.table_bytes(spans[-1])
    planned = {"weight": weight, "optimizer": state, "store": planner.store_bytes(spans[-2])}
    for measured, _ in ranks:
        assert planned == pytest.approx({name: measured[name] for name in planned}, rel=0.1)
    # Items are known in the order of their ids, so that headroom leaves the last rank less to copy than the first.
    copy = planner.snapshot_bytes(spans[-1]) + planner.query_copy_bytes(spans[-1])
    assert copy == pytest.approx(max(measured["copy"] for measured, _ in ranks), rel=0.1)


def _grown(topology, section, items, dim):
    """The most bytes that this rank allocates while its table grows."""
    with memory_profile() as peak_bytes, patch.object(rows, "EXCHANGED", PART):
        catalogue = Catalogue(section, items[:1], dim, 0, topology)
        with record_function(MEASURED):
            assert catalogue.grow(items[1])
    return peak_bytes()


def test_a_table_grows_in_the_planned_memory(monkeypatch):
    monkeypatch.setattr(memory, "EXCHANGED", PART)
    items, dim, section = [20_000, 30_000], 64, CatalogueConfig(optimizer="adagrad")
    measured = run_ranks(RANKS, _grown, section, items, dim, fresh=True)[0]
    config = PlanConfig(items[1], dim=dim, gpus_per_node=RANKS, gpu="a100-40", spans=1, catalogue=section)
    config = replace(config, load=LoadConfig(new_items=1 / 3), checkpoint=CheckpointConfig(enabled=False))
    phases = MemoryModel(config, spans_of(config), row_wise(RANKS)).phases()
    (growing,) = (phase.device for phase in phases if phase.name == "growing the table")
    grown = growing["item table"] + growing["optimizer state"]
    assert growing["rows that are sent and arrive"] == 2 * PART < 0.1 * grown
    assert grown == pytest.approx(measured, rel=0.1)  # gloo may still hold some of the parts


def test_interests_grow_and_go_in_the_planned_memory():
    users, first = 3000, 4
    config = PlanConfig(
        users=users,
        dim=32,
        gpu="cpu",
        model=ModelConfig(interests=first),
        spans=2,
        load=LoadConfig(new_interests=0.0),
    )
    phases = {
        (phase.span, phase.name): phase.device for phase in MemoryModel(config, spans_of(config), row_wise(1)).phases()
    }
    store = InterestStore(config.store, OwnedUsers(1, range(1)), users, 32, 0, 0, torch.device("cpu"))
    for change, phase in (
        (lambda: store.expand(torch.arange(users), first, 0), phases[0, "new interests"]),
        (lambda: store.trim(torch.ones(users * first, dtype=torch.bool)), phases[1, "trimming"]),
    ):
        with memory_profile() as peak_bytes, record_function(MEASURED):
            change()
        planned = sum(phase.get(name, 0) for name in ("grown store", "interests that are drawn", "interests that move"))
        assert 0.9 * peak_bytes() <= planned <= 1.4 * peak_bytes()


SMALL = PlanConfig(
    items=100_000,
    users=50_000,
    gpus_per_node=4,
    gpu="a100-40",
    dry_run=False,
    store=InterestStoreConfig("device"),
)


def _peak(config):
    phases = MemoryModel(config, spans_of(config), row_wise(config.ranks)).phases()
    return max(total(phase.device) for phase in phases), max(total(phase.host) for phase in phases)


@settings(max_examples=60, deadline=None)
@given(
    key=st.sampled_from(["items", "users", "interests", "size", "negatives", "ranks"]),
    low=st.integers(1, 10**9),
    more=st.integers(0, 10**9),
)
@example(key="size", low=1, more=4)
@example(key="items", low=87, more=2)
def test_more_never_takes_less_and_more_ranks_never_more_each(key, low, more):
    high = low + more
    if key in ("items", "users"):
        # With headroom a table that is outgrown earlier may be the smaller one from then on.
        base = replace(SMALL, catalogue=CatalogueConfig(headroom=0.0)) if key == "items" else SMALL
        one, other = (replace(base, **{key: value}) for value in (low, high))
    elif key == "interests":
        one, other = (replace(SMALL, model=ModelConfig(interests=value % 10**4 + 1)) for value in (low, high))
        one, other = sorted((one, other), key=lambda config: config.model.interests)
    elif key == "ranks":
        other, one = (replace(SMALL, nodes=value % 1000 + 1) for value in (low, high))
        if other.ranks > one.ranks:
            one, other = other, one
        # Each rank has a row for every rank at least, and a user's part of the batch.
        one, other = (replace(config, items=10**8, batch=BatchConfig(size=10**6)) for config in (one, other))
    else:
        one, other = (replace(SMALL, batch=BatchConfig(**{key: value})) for value in (low, high))
    for less, most in zip(_peak(one), _peak(other), strict=True):
        assert less <= most


def test_strategies_and_sections_count():
    plain, host = _peak(SMALL)
    assert _peak(replace(SMALL, strategy=StrategyConfig(name="sml")))[0] > plain
    assert _peak(replace(SMALL, training=TrainingConfig(patience=0)))[1] < host
    assert _peak(replace(SMALL, checkpoint=CheckpointConfig(enabled=False)))[1] < host
    assert _peak(replace(SMALL, model=ModelConfig(base="comirec_sa")))[0] > plain
    stored = replace(SMALL.store, memory="host")
    there, here = _peak(replace(SMALL, store=stored))
    assert there < plain
    assert here > host


@pytest.mark.parametrize(("users", "same_as"), [(10**6, "device"), (10**8, "host")])
def test_interests_leave_a_device_that_they_would_fill(users, same_as):
    config = replace(SMALL, users=users)
    auto, fixed = (_peak(replace(config, store=InterestStoreConfig(memory))) for memory in ("auto", same_as))
    assert auto == fixed


def test_zero_allocates_its_bucket_whatever_there_is_to_reduce():
    shipped = Path(__file__).parents[2] / "configs" / "deepspeed"
    bucket = [gradient_bucket(EngineConfig(shipped / f"zero{stage}.json")) for stage in range(3)]
    assert bucket == [0, 20_000_000, 20_000_000]


def test_the_fullest_rank_is_torchrecs():
    for sharding in ("row_wise", "planner"):
        config = replace(SMALL, catalogue=CatalogueConfig(sharding=sharding))
        assert shard_of(config)(100_001) == row_wise(4)(100_001) == 25_001
