"""What launch/bench.py measures: one file a subcommand, one registry.

A new benchmark is a dataclass of options with a ``json`` path, a function that returns figures, and an entry here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from dist_imsr.benchmarks.ablation import AblationBench, bench_ablation
from dist_imsr.benchmarks.checkpoint import CheckpointBench, bench_checkpoint
from dist_imsr.benchmarks.kernel import KernelBench, bench_kernel
from dist_imsr.benchmarks.prepare import PrepareBench, bench_prepare
from dist_imsr.benchmarks.rank import RankBench, bench_rank
from dist_imsr.benchmarks.report import Figure
from dist_imsr.benchmarks.store import StoreBench, bench_store
from dist_imsr.benchmarks.strategies import StrategiesBench, bench_strategies
from dist_imsr.benchmarks.train import TrainBench, bench_train


class Benchmark(NamedTuple):
    """A subcommand.

    Args:
        options: the dataclass of its keys; its docstring is the help.
        measure: takes the options and returns the figures.
    """

    options: type[Any]
    measure: Callable[[Any], list[Figure]]


BENCHMARKS = {
    "prepare": Benchmark(PrepareBench, bench_prepare),
    "train": Benchmark(TrainBench, bench_train),
    "ablation": Benchmark(AblationBench, bench_ablation),
    "rank": Benchmark(RankBench, bench_rank),
    "kernel": Benchmark(KernelBench, bench_kernel),
    "strategies": Benchmark(StrategiesBench, bench_strategies),
    "checkpoint": Benchmark(CheckpointBench, bench_checkpoint),
    "store": Benchmark(StoreBench, bench_store),
}
