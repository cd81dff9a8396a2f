"""The whole tree of a run's keys; each section is defined with its component."""

from dataclasses import dataclass, field
from pathlib import Path

from dist_imsr.checks import require
from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.distributed.interest_store import InterestStoreConfig
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.evaluation.repeats import RepeatsConfig
from dist_imsr.keys import free, later_spans, never
from dist_imsr.model.extractors import ModelConfig, build_extractor
from dist_imsr.strategies import STRATEGIES, StrategyConfig, TrainingConfig
from dist_imsr.training.checkpoint import CheckpointConfig


@dataclass
class TrainConfig:
    """Trains a multi-interest recommender span by span and tests it on each next span.

    Args:
        data: the prepared data; a run resumes over data that have grown, but not if a span that it read has changed.
        run_dir: the run's folder, for config.yaml, metrics.jsonl, phases.jsonl, events/, spans/, users/, profile/ and
            checkpoints/.
        seed: keys every random number of the run.
        resume: ``auto`` resumes from the newest sound checkpoint in run_dir, if it has any; ``never`` refuses a folder
            that holds a run; the path of a checkpoint resumes from that one if run_dir has none. A checkpoint right
            after pre-training may be of another strategy, and differ in other keys that only later spans read.
        overwrite: replace the results of an earlier run in run_dir, its checkpoints included.
        timeout_seconds: that ranks wait for each other, at the start and in every exchange, before the job ends.
        step_timeout_seconds: the same within an epoch, as soon as losses have been read at the beginning and after a
            checkpoint, which may take ranks unequally long. timeout_seconds is the limit if it is smaller.
        model: the base model.
        strategy: the incremental strategy.
        training: length and early stopping.
        batch: the size of a step.
        catalogue: the item table.
        store: the interest store.
        engine: the dense weights.
        ranking: how the catalogue is ranked.
        eval: the metrics of a test.
        repeats: what scores add for items that a user has met.
        checkpoint: when checkpoints are written.
        profile: also write traces of a few steps of each span to run_dir/profile/, and a table of seconds by phase and
            span, which is printed as well. On CUDA devices each phase is then waited for, which takes time.
        baselines: at the end, also show what two baselines get in the tests of this run: the popular items, and each
            user's own items. Costs a pass over the data, once; the figures are kept in run_dir/baselines.jsonl.
        imports: modules that register strategies or base models, imported before anything else is read;
            ``--import NAME ...`` on the command line adds to them. The current directory is searched, too.
    """

    data: DataConfig = field(metadata=never(compare="tests"))  # the digests of spans count
    run_dir: Path = field(metadata=free(compare="grid"))
    seed: int = field(default=0, metadata=never(compare="grid"))
    resume: str = field(default="auto", metadata=free(compare="grid"))
    overwrite: bool = field(default=False, metadata=free(compare="grid"))
    timeout_seconds: float = field(default=1800.0, metadata=free(compare="shared"))
    step_timeout_seconds: float = field(default=300.0, metadata=free(compare="shared"))
    model: ModelConfig = field(default_factory=ModelConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig, metadata=later_spans())
    training: TrainingConfig = field(default_factory=TrainingConfig)
    batch: BatchConfig = field(default_factory=BatchConfig, metadata=never(compare="shared"))
    catalogue: CatalogueConfig = field(default_factory=CatalogueConfig)
    store: InterestStoreConfig = field(default_factory=InterestStoreConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    ranking: RankingConfig = field(default_factory=RankingConfig, metadata=free(compare="shared"))
    eval: EvalConfig = field(default_factory=EvalConfig, metadata=never(compare="tests"))
    repeats: RepeatsConfig = field(default_factory=RepeatsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig, metadata=free(compare="shared"))
    profile: bool = field(default=False, metadata=free())
    baselines: bool = field(default=True, metadata=free(compare="grid"))
    imports: list[str] = field(default_factory=list, metadata=free(compare="grid"))

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.timeout_seconds > 0, "timeout_seconds", self.timeout_seconds, "above 0")
        require(self.step_timeout_seconds > 0, "step_timeout_seconds", self.step_timeout_seconds, "above 0")
        places, longest = self.model.positions, self.batch.max_history
        require(
            places == 0 or places >= longest, "model.positions", places, f"0, or batch.max_history ({longest}) or more"
        )
        if not getattr(STRATEGIES[self.strategy.name].build, "fixed_parameters", False):
            expected = (
                f"life_long or frozen, since what model.base {self.model.base} keeps of users fits fixed parameters"
            )
            require(not build_extractor(self.model).state_dim, "strategy.name", self.strategy.name, expected)
