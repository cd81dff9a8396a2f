"""The whole tree of a run's keys; each section is next to its component, that of training is here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dist_imsr.checks import require
from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.distributed.interest_store import InterestStoreConfig
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.keys import free, later_spans, never
from dist_imsr.model.extractors import ModelConfig, build_extractor
from dist_imsr.strategies import StrategyConfig, build_strategy
from dist_imsr.training.checkpoint import CheckpointConfig


@dataclass
class TrainingConfig:
    """How long to train, and when to stop.

    Args:
        epochs: at most, in the pre-training span, and in each span of full_retraining.
        incremental_epochs: at most, in every later span.
        patience: epochs without a better validation before the best state is restored; 0 trains all epochs and keeps
            the last.
        metric: what validation measures on each user's second last interaction of the span.
        validation_users: about so many users of a span are validated on, where there are more.
        spans: how many spans are trained after the pre-training span; all by default, 0 for pre-training alone. A run
            may be prolonged: the same command with more of them continues it.
        export: of which spans interests, items and the detector's findings are written under run_dir/spans/; the last
            trained one is what launch/recommend.py and launch/export.py read.
    """

    epochs: int = 50
    incremental_epochs: int = field(default=15, metadata=later_spans(compare="shared"))
    patience: int = field(default=5, metadata=never(compare="shared"))
    metric: Literal["ndcg", "mrr"] = field(default="ndcg", metadata=never(compare="shared"))
    validation_users: int = field(default=2000, metadata=never(compare="shared"))
    spans: int | None = field(default=None, metadata=free(compare="shared"))
    export: Literal["none", "last", "every"] = field(default="last", metadata=free(compare="grid"))

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "training.epochs", self.epochs, "at least 1")
        require(self.incremental_epochs >= 1, "training.incremental_epochs", self.incremental_epochs, "at least 1")
        require(self.patience >= 0, "training.patience", self.patience, "at least 0")
        require(self.validation_users >= 1, "training.validation_users", self.validation_users, "at least 1")
        require(self.spans is None or self.spans >= 0, "training.spans", self.spans, "at least 0")

    def last(self, spans: int) -> int:
        """The last span that is trained.

        Args:
            spans: how many the data have, the pre-training span included.

        Returns:
            Its number; the last of the data is for testing alone.

        Raises:
            ValueError: if ``spans`` is more than the data have.
        """
        most = spans - 2
        wanted = most if self.spans is None else self.spans
        require(wanted <= most, "training.spans", self.spans, f"at most {most} with these data")
        return wanted


@dataclass
class TrainConfig:
    """Trains a multi-interest recommender span by span and tests it on each next span.

    Args:
        data: the prepared data.
        run_dir: the run's folder, for config.yaml, metrics.jsonl, phases.jsonl, events/, spans/, users/, profile/ and
            checkpoints/.
        seed: keys every random number of the run.
        resume: ``auto`` resumes from the newest sound checkpoint in run_dir, if it has any; ``never`` refuses a folder
            that holds a run; the path of a checkpoint resumes from that one if run_dir has none. A checkpoint right
            after pre-training may be of another strategy, and differ in other keys that only later spans read.
        overwrite: replace what an earlier run left in run_dir, its checkpoints included.
        timeout_seconds: that ranks wait for each other before the job ends.
        model: the base model.
        strategy: the incremental strategy.
        training: length and early stopping.
        batch: what a step sees.
        catalogue: the item table.
        store: the interest store.
        engine: the dense weights.
        ranking: how the catalogue is ranked.
        eval: what a test measures.
        checkpoint: when checkpoints are written.
        profile: also write traces of a few steps of each span to run_dir/profile/, and a table of seconds by phase and
            span, which is printed as well. On CUDA devices each phase is then waited for, which takes time.
        imports: modules that register strategies or base models, imported before anything else is read;
            ``--import NAME ...`` on the command line, where the current directory counts as well.
    """

    data: DataConfig = field(metadata=never(compare="shared"))  # their digest counts, wherever they are
    run_dir: Path = field(metadata=free(compare="grid"))
    seed: int = field(default=0, metadata=never(compare="grid"))
    resume: str = field(default="auto", metadata=free(compare="grid"))
    overwrite: bool = field(default=False, metadata=free(compare="grid"))
    timeout_seconds: float = field(default=1800.0, metadata=free(compare="shared"))
    model: ModelConfig = field(default_factory=ModelConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig, metadata=later_spans())
    training: TrainingConfig = field(default_factory=TrainingConfig)
    batch: BatchConfig = field(default_factory=BatchConfig, metadata=never(compare="shared"))
    catalogue: CatalogueConfig = field(default_factory=CatalogueConfig)
    store: InterestStoreConfig = field(default_factory=InterestStoreConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    ranking: RankingConfig = field(default_factory=RankingConfig, metadata=free(compare="shared"))
    eval: EvalConfig = field(default_factory=EvalConfig, metadata=never(compare="shared"))
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata=free(compare="shared"))
    profile: bool = field(default=False, metadata=free())
    imports: list[str] = field(default_factory=list, metadata=free(compare="grid"))

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.timeout_seconds > 0, "timeout_seconds", self.timeout_seconds, "above 0")
        places, longest = self.model.positions, self.batch.max_history
        require(
            places == 0 or places >= longest, "model.positions", places, f"0, or batch.max_history ({longest}) or more"
        )
        if build_strategy(self.strategy).parameters != "first":
            expected = (
                f"life_long or frozen, since what model.base {self.model.base} keeps of users fits fixed parameters"
            )
            require(not build_extractor(self.model).state_dim, "strategy.name", self.strategy.name, expected)
