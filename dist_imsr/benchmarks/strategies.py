"""Whole spans of planted drift under IMSR and under fine-tuning, which take turns."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from dist_imsr.benchmarks.clock import timed
from dist_imsr.benchmarks.report import Figure, ratios
from dist_imsr.benchmarks.world import Device, settings_of, settle, world
from dist_imsr.checks import require, require_file
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.drift import DriftConfig
from dist_imsr.data.prepare import PrepareConfig, prepare
from dist_imsr.distributed.topology import Topology
from dist_imsr.strategies import StrategyConfig
from dist_imsr.strategies.interests import InterestPolicy
from dist_imsr.training.config import TrainConfig, TrainingConfig
from dist_imsr.training.trainer import Trainer


@dataclass(frozen=True)
class StrategiesBench:
    """Times the training of whole spans, each strategy with the same data, epochs and ranks.

    Args:
        drift: the data; all later spans have equally many interactions.
        spans: T; as many pairs are timed.
        pretraining_epochs: of the span before them.
        epochs: of each later span, with the validation that follows each.
        imsr: the parts of imsr.
        device: what ranks work on; auto is CUDA where there is a device.
        ranks: processes; 0 for two on the host, and for one on each device of CUDA.
        threads: of each process.
        seed: of the run.
        json: where the figures are written as a list of objects.
    """

    drift: DriftConfig = field(
        default_factory=lambda: DriftConfig(users=5000, items=20_000, interactions=[200_000, 75_000])
    )
    spans: int = 6
    pretraining_epochs: int = 10
    epochs: int = 5
    imsr: InterestPolicy = field(default_factory=InterestPolicy)
    device: Device = "auto"
    ranks: int = 0
    threads: int = 1
    seed: int = 0
    json: Path | None = None

    def __post_init__(self) -> None:
        settle(self)
        for name in ("spans", "pretraining_epochs", "epochs", "threads"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(len(self.drift.interactions) <= 2, "drift.interactions", self.drift.interactions, "two numbers at most")
        require_file(self.json, "json")


def bench_strategies(options: StrategiesBench) -> list[Figure]:
    """Measures what growing and keeping interests costs, and whether spans grow longer.

    Args:
        options: the subcommand's.

    Returns:
        Seconds a span of both strategies, ``imsr_over_ft_span_seconds`` span by span, and
        ``span_seconds_last_over_first`` of IMSR, with its twin of fine-tuning.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = PrepareConfig(
            source="drift", output=folder / "data", drift=options.drift, spans=options.spans, min_interactions=1
        )
        prepare(data, Console(quiet=True))
        sides = {
            name: TrainConfig(
                data=DataConfig(folder / "data"),
                run_dir=folder / name,
                seed=options.seed,
                strategy=StrategyConfig(name, options.imsr),
                training=TrainingConfig(options.pretraining_epochs, options.epochs, patience=0),
            )
            for name in ("imsr", "fine_tuning")
        }
        with world(options) as imsr, world(options) as tuning:
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for span in range(options.spans + 1):
                turns = list(zip(sides.items(), (imsr, tuning), strict=True))
                for (name, config), ranks in turns[:: 1 if span % 2 else -1]:
                    seconds[name].append(max(ranks.call(_fit, config, span)))
    settings = settings_of(options)
    ours, theirs = (seconds[name][1:] for name in ("imsr", "fine_tuning"))  # without the pre-training span
    return [
        Figure("imsr_span_seconds", "s", ours, settings),
        Figure("ft_span_seconds", "s", theirs, settings),
        Figure("imsr_over_ft_span_seconds", "ratio", ratios(ours, theirs), settings),
        Figure("span_seconds_last_over_first", "ratio", ratios(ours[-1:], ours[:1]), settings),
        Figure("ft_span_seconds_last_over_first", "ratio", ratios(theirs[-1:], theirs[:1]), settings),
    ]


_trainer: Trainer  # of this rank's process


def _fit(topology: Topology, config: TrainConfig, span: int) -> float:
    """Trains the next span; returns its seconds."""
    global _trainer
    if span == 0:
        _trainer = Trainer(config, Dataset(config.data), topology)
    return timed(topology, _trainer.learn, span)[0]
