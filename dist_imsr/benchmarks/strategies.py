"""Whole spans of planted drift under IMSR and under fine-tuning, which take turns."""

import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from dist_imsr.benchmarks.options import MAY_BE_ZERO, WorldOptions
from dist_imsr.benchmarks.report import Figure, figures_of, ratios
from dist_imsr.benchmarks.world import World, take_turns
from dist_imsr.checks import require
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.drift import DriftConfig
from dist_imsr.data.prepare import PrepareConfig, prepare
from dist_imsr.distributed.topology import Topology
from dist_imsr.strategies import StrategyConfig
from dist_imsr.strategies.imsr import IMSRConfig
from dist_imsr.training.config import TrainConfig, TrainingConfig
from dist_imsr.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class StrategiesBench(WorldOptions):
    """Times the training of whole spans, each strategy with the same data, epochs and ranks.

    Args:
        drift: the data; all later spans have equally many interactions.
        spans: T; as many pairs are timed.
        pretraining_epochs: of the span before them.
        epochs: of each later span, with the validation that follows each.
        imsr: the section of IMSR.
        seed: of the run.
    """

    drift: DriftConfig = field(
        default_factory=lambda: DriftConfig(users=5000, items=20_000, interactions=[200_000, 75_000])
    )
    spans: int = 6
    pretraining_epochs: int = 10
    epochs: int = 5
    imsr: IMSRConfig = field(default_factory=IMSRConfig)
    seed: int = field(default=0, metadata=MAY_BE_ZERO)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.drift.interactions) <= 2, "drift.interactions", self.drift.interactions, "at most two numbers")


def bench_strategies(options: StrategiesBench) -> list[Figure]:
    """Measures the cost of growing and keeping interests, and whether spans grow longer.

    Returns:
        Seconds a span of both strategies, ``imsr_over_ft_span_seconds`` span by span, and
        ``span_seconds_last_over_first`` of both.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = PrepareConfig(
            source="drift", output=folder / "data", drift=options.drift, spans=options.spans, min_interactions=1
        )
        prepare(data, Console(quiet=True))
        configs = [
            TrainConfig(
                data=DataConfig(folder / "data"),
                run_dir=folder / name,
                seed=options.seed,
                strategy=StrategyConfig(name=name, imsr=options.imsr),
                training=TrainingConfig(options.pretraining_epochs, options.epochs, patience=0),
            )
            for name in ("imsr", "fine_tuning")
        ]
        with World(options) as world:
            sides = [world.start(StrategyWorker, config) for config in configs]
            seconds = take_turns(
                1 + options.spans, *(partial(side.seconds, StrategyWorker.train_next_span) for side in sides)
            )
    ours, theirs = (side[1:] for side in seconds)  # without the pre-training span
    compared = {
        "imsr_over_ft_span_seconds": ratios(ours, theirs),
        "span_seconds_last_over_first": ratios(ours[-1:], ours[:1]),
        "ft_span_seconds_last_over_first": ratios(theirs[-1:], theirs[:1]),
    }
    spans = figures_of(options.settings, "s", {"imsr_span_seconds": ours, "ft_span_seconds": theirs})
    return spans + figures_of(options.settings, "ratio", compared)


class StrategyWorker:
    """One rank's trainer."""

    def __init__(self, topology: Topology, config: TrainConfig) -> None:
        self.trainer, self.next_span = Trainer(config, Dataset(config.data), topology), 0

    def train_next_span(self) -> None:
        """Trains a span after the one before, the first time the pre-training span."""
        self.trainer.train_span(self.next_span)
        self.next_span += 1
