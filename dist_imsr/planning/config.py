"""The keys of launch/plan.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from dist_imsr.checks import require, require_file
from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.distributed.interest_store import InterestStoreConfig
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.planning.hardware import Hardware, HardwareConfig
from dist_imsr.strategies import StrategyConfig
from dist_imsr.training.checkpoint import CheckpointConfig
from dist_imsr.training.config import TrainConfig, TrainingConfig

MOST_BUCKETS = 1 << 16  # of users that launch/prepare.py makes


@dataclass
class LoadConfig:
    """The interactions, items and interests that users bring.

    ``pretraining`` is the paper's Table II for Taobao: 85.4 M interactions of 976,779 users. Its later spans bring 14.2
    M on average, or 18.7 per active user if 78 % of users are active, as in a sample of Taobao's log. The other two are
    assumptions.

    Args:
        pretraining: interactions of a user in the pre-training span.
        active: share of users with interactions in a later span.
        interactions: of an active user in a later span.
        new_items: share of all items that appear in each later span.
        new_interests: that an active user gains in each later span under strategies that add interests.
    """

    pretraining: float = 87.4
    active: float = 0.78
    interactions: float = 18.7
    new_items: float = 0.05
    new_interests: float = 0.3

    def __post_init__(self) -> None:
        require(self.pretraining >= 2, "load.pretraining", self.pretraining, "at least 2")
        require(0 < self.active <= 1, "load.active", self.active, "above 0, at most 1")
        require(self.interactions >= 2, "load.interactions", self.interactions, "at least 2")
        require(0 <= self.new_items < 1, "load.new_items", self.new_items, "0 or more, less than 1")
        require(self.new_interests >= 0, "load.new_interests", self.new_interests, "at least 0")


@dataclass
class PlanConfig:
    """Plans a run without any device: memory, links, time, and what limits growth.

    Args:
        items: known when the last span ends.
        users: all of whom have interests from the pre-training span on.
        dim: d; model.dim by default.
        nodes: number of machines.
        gpus_per_node: devices of each machine, with one rank each.
        gpu: the kind of device; hardware overrides figures of its data sheet.
        spans: after the pre-training span; the last is only tested.
        reserve: share of memory that is left to allocators, NCCL and CUDA itself.
        process: bytes of host memory for Python and the libraries of each rank.
        dry_run: take one training step on this machine's CPU as rank 0, with simulated other ranks.
        json: a file for everything that is printed.
        load: what users bring.
        hardware: figures that replace those of the data sheet.
        model: as in launch/train.py, like all sections below.
        strategy: the incremental strategy.
        training: length and early stopping; training.spans and training.until are not read.
        batch: what a step sees.
        catalogue: the item table.
        store: the interest store.
        engine: the dense weights.
        ranking: how the catalogue is ranked.
        eval: what a test measures; eval.max_users counts.
        checkpoint: when the state is saved.
        imports: modules that register strategies or base models; ``--import NAME ...`` on the command line.
    """

    items: int = 1_708_530
    users: int = 976_779
    dim: int | None = None
    nodes: int = 1
    gpus_per_node: int = 1
    gpu: Literal["cpu", "rtx2080ti", "v100", "a100-40", "a100-80", "h100", "h200"] = "h100"
    spans: int = 6
    reserve: float = 0.1
    process: int = 3 * 10**9
    dry_run: bool = True
    json: Path | None = None
    load: LoadConfig = field(default_factory=LoadConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    catalogue: CatalogueConfig = field(default_factory=CatalogueConfig)
    store: InterestStoreConfig = field(default_factory=InterestStoreConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    ranking: RankingConfig = field(default_factory=RankingConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    imports: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key in ("items", "users", "nodes", "gpus_per_node", "spans"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        if self.dim is not None:
            require(self.dim >= 4 and self.dim % 4 == 0, "dim", self.dim, "a multiple of 4 (the table kernels' need)")
            self.model.dim = self.dim
        most = f"at most {MOST_BUCKETS:,} ranks, since each owns at least one bucket of users"
        require(self.ranks <= MOST_BUCKETS, "nodes", self.nodes, most)
        require(self.spans < 1 << 15, "spans", self.spans, "less than 32,768: an interest's birth is an int16")
        require(0 <= self.reserve < 1, "reserve", self.reserve, "0 or more, less than 1")
        require(self.process >= 0, "process", self.process, "at least 0")
        new_items = self.load.new_items
        require(1 - new_items * self.spans > 0, "load.new_items", new_items, f"less than 1 / {self.spans} (spans)")
        require_file(self.json, "json")
        self.catalogue.check_device(torch.device(self.device.device))
        TrainConfig(  # refuses what a run refuses
            data=DataConfig(Path()),
            run_dir=Path(),
            model=self.model,
            strategy=self.strategy,
            training=self.training,
            batch=self.batch,
        )

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.nodes * self.gpus_per_node

    @property
    def device(self) -> Hardware:
        """The device with its figures."""
        return self.hardware.override(self.gpu)
