"""The part of a run's configuration that strategies and the steps of training read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.distributed.interest_store import InterestStoreConfig
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.evaluation.repeats import RepeatsConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.strategies.resources import Resources
from dist_imsr.strategies.step_memory import bytes_alongside_table
from dist_imsr.strategies.training_config import TrainingConfig


class Sections(Protocol):
    """The keys of a run that its strategy and its steps read."""

    run_dir: Path
    seed: int
    timeout_seconds: float
    step_timeout_seconds: float
    model: ModelConfig
    training: TrainingConfig
    checkpoint: Any
    batch: BatchConfig
    catalogue: CatalogueConfig
    store: InterestStoreConfig
    engine: EngineConfig
    ranking: RankingConfig
    eval: EvalConfig
    repeats: RepeatsConfig


def build_recommender(
    config: Sections,
    dataset: Dataset,
    topology: Topology,
    items: Sequence[int],
    users_per_bucket: int,
    capacity: int | None = None,
    *,
    resources: Resources,
) -> Recommender:
    """Builds this rank's part of a run's model; arguments as in `Recommender`, and of the strategy; collective."""
    return Recommender(
        model=config.model,
        catalogue=config.catalogue,
        store=config.store,
        engine=config.engine,
        items=items,
        n_buckets=dataset.buckets,
        users_per_bucket=users_per_bucket,
        seed=config.seed,
        topology=topology,
        events=config.run_dir / "events",
        capacity=capacity,
        alongside=bytes_alongside_table(config, resources, topology.world_size),
        copies=resources.tables,
    )
