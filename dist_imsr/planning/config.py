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

MOST_BUCKETS = 1 << 16  # that launch/prepare.py makes


@dataclass
class LoadConfig:
    """What users bring.

    ``pretraining`` is the paper's Table II for Taobao: 85.4 M interactions of 976,779 users. Its later spans bring 14.2
    M on average, which are 18.7 for each active user if 78 % of users are active, as in a sample of Taobao's log. The
    other two are assumptions.

    Args:
        pretraining: interactions of a user in the pre-training span.
        active: the share of users with interactions in a later span.
        interactions: of an active user in a later span.
        new_items: the share of all items that appear in each later span.
        new_interests: that an active user gains in each later span under imsr; none under other strategies.
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
    """Plans a run without any device: memory, links, time, and what breaks first.

    Args:
        items: known when the last span ends.
        users: of whom all have interests from the pre-training span on.
        dim: d; what model.dim says by default.
        nodes: machines.
        gpus_per_node: devices of each, one rank for each of them.
        gpu: the kind of device; hardware overrides what its data sheet tells.
        spans: after the pre-training span; the last is for testing alone.
        reserve: the share of memory that is left to allocators, NCCL and CUDA itself.
        process: bytes of the host that each rank takes before it holds anything: Python and the libraries.
        dry_run: take one step of training on this machine's CPU, as rank 0 among ranks that only seem to be there.
        json: a file for everything that is printed.
        load: what users bring.
        hardware: figures in the place of the data sheet's.
        model: as in launch/train.py, like all sections below.
        strategy: the incremental strategy.
        training: length and early stopping; training.spans is not read.
        batch: what a step sees.
        catalogue: the item table.
        store: the interest store.
        engine: the dense weights.
        ranking: how the catalogue is ranked.
        eval: what a test measures; eval.max_users counts.
        checkpoint: when the state is kept.
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

    def __post_init__(self) -> None:
        for key in ("items", "users", "nodes", "gpus_per_node", "spans"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        if self.dim is not None:
            require(self.dim >= 4 and self.dim % 4 == 0, "dim", self.dim, "a multiple of 4 (the table kernels' need)")
            self.model.dim = self.dim
        most = f"at most {MOST_BUCKETS:,} ranks: each owns a bucket of users or more, and there are no more of those"
        require(self.ranks <= MOST_BUCKETS, "nodes", self.nodes, most)
        require(self.spans < 1 << 15, "spans", self.spans, "less than 32,768: an interest's birth is an int16")
        require(0 <= self.reserve < 1, "reserve", self.reserve, "0 or more, less than 1")
        require(self.process >= 0, "process", self.process, "at least 0")
        left = 1 - self.load.new_items * self.spans
        require(left > 0, "load.new_items", self.load.new_items, f"less than 1 / {self.spans}, with so many spans")
        require_file(self.json, "json")
        self.catalogue.optimizer_on(torch.device(self.device.device))
        sections = self.model, self.strategy, self.training, self.batch  # what a run refuses, a plan does
        TrainConfig(DataConfig(Path()), Path(), 0, "auto", False, 1.0, *sections)

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return self.nodes * self.gpus_per_node

    @property
    def device(self) -> Hardware:
        """The device with its figures."""
        return self.hardware.of(self.gpu)

    @property
    def optimizer(self) -> str:
        """The table's fused optimizer on that device."""
        return self.catalogue.optimizer_on(torch.device(self.device.device))
