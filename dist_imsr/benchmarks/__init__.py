"""What launch/bench.py measures: one file a subcommand, one registry.

A new benchmark is a dataclass of options with a ``json`` path, a function that returns figures, and an entry here. One
that starts ranks settles its ``device`` and ``ranks`` (`dist_imsr.benchmarks.world`); one that the subcommand ``all``
runs says so here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from dist_imsr.benchmarks.ablation import AblationBench, bench_ablation
from dist_imsr.benchmarks.ceilings import CeilingsBench, bench_ceilings
from dist_imsr.benchmarks.checkpoint import CheckpointBench, bench_checkpoint
from dist_imsr.benchmarks.kernel import KernelBench, bench_kernel
from dist_imsr.benchmarks.prepare import PrepareBench, bench_prepare
from dist_imsr.benchmarks.rank import RankBench, bench_rank
from dist_imsr.benchmarks.report import Figure
from dist_imsr.benchmarks.span import SpanBench, bench_span
from dist_imsr.benchmarks.store import StoreBench, bench_store
from dist_imsr.benchmarks.strategies import StrategiesBench, bench_strategies
from dist_imsr.benchmarks.train import TrainBench, bench_train


class Benchmark(NamedTuple):
    """A subcommand.

    Args:
        options: the dataclass of its keys; its docstring is the help.
        measure: takes the options and returns the figures.
        of_all: the kinds of devices that the subcommand ``all`` measures by it.
        on_cuda: arguments that ``all`` gives it on CUDA, before those of the command line.
        quick: arguments of ``all --quick``.
    """

    options: type[Any]
    measure: Callable[[Any], list[Figure]]
    of_all: tuple[str, ...] = ()
    on_cuda: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()


_BOTH = ("cpu", "cuda")
_FEW_STEPS = ("--items=3000", "--batch=32", "--dim=8", "--steps=2", "--repeats=2")

BENCHMARKS = {
    "ceilings": Benchmark(CeilingsBench, bench_ceilings, _BOTH, quick=("--block=1", "--size=64", "--repeats=2")),
    "train": Benchmark(
        *(TrainBench, bench_train, _BOTH, ("--users=977000", "--batch=8192", "--steps=50")),
        quick=(*_FEW_STEPS, "--users=400", "--history=5", "--negatives=16", "--warmup=1"),
    ),
    # The paper's catalogue and a day's users; tiles as large as a GPU wants them.
    "rank": Benchmark(
        *(RankBench, bench_rank, _BOTH, ("--users=10000", "--memory=2048")),
        quick=("--items=3000", "--users=8", "--dim=8", "--memory=16", "--repeats=2"),
    ),
    "kernel": Benchmark(
        *(KernelBench, bench_kernel, ("cuda",)),
        quick=("--items=3000", "--users=8", "--memory=16", "--repeats=2"),
    ),
    "store": Benchmark(
        *(StoreBench, bench_store, _BOTH, ("--batch=8192", "--steps=20")),
        quick=(*_FEW_STEPS, "--users=400", "--few=100", "--warmup=1"),
    ),
    "checkpoint": Benchmark(
        *(CheckpointBench, bench_checkpoint, _BOTH, ("--users=977000", "--batch=8192")),
        quick=(*_FEW_STEPS, "--users=400", "--buckets=8"),
    ),
    "strategies": Benchmark(
        *(StrategiesBench, bench_strategies, _BOTH),
        quick=(
            *("--drift.users=80", "--drift.items=200", "--drift.clusters=20", "--drift.interactions=[2000, 1000]"),
            *("--spans=2", "--epochs=1", "--pretraining_epochs=1"),
        ),
    ),
    "span": Benchmark(SpanBench, bench_span, _BOTH),
    "prepare": Benchmark(PrepareBench, bench_prepare),
    "ablation": Benchmark(AblationBench, bench_ablation),
}
