"""The benchmarks of launch/bench.py, one file each, and their registry.

A new benchmark is a dataclass of options (`dist_imsr.benchmarks.options`), a function that returns figures
(`dist_imsr.benchmarks.report`), and an entry here. What it measures on ranks is a class whose objects live in the
ranks' processes (`dist_imsr.benchmarks.world`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from dist_imsr.benchmarks.append import AppendBench, bench_append
from dist_imsr.benchmarks.ceilings import CeilingsBench, bench_ceilings
from dist_imsr.benchmarks.checkpoint import CheckpointBench, bench_checkpoint
from dist_imsr.benchmarks.kernel import KernelBench, bench_kernel
from dist_imsr.benchmarks.options import Options
from dist_imsr.benchmarks.prepare import PrepareBench, bench_prepare
from dist_imsr.benchmarks.rank import RankBench, bench_rank
from dist_imsr.benchmarks.refresh import RefreshBench, bench_refresh
from dist_imsr.benchmarks.report import Figure
from dist_imsr.benchmarks.span import SpanBench, bench_span
from dist_imsr.benchmarks.store import StoreBench, bench_store
from dist_imsr.benchmarks.strategies import StrategiesBench, bench_strategies
from dist_imsr.benchmarks.train import TrainBench, bench_train


class Benchmark(NamedTuple):
    """A subcommand of bench.py.

    Args:
        options: the dataclass of its keys; the docstring is the help.
        measure: computes the figures from the options.
        device_types: the devices on which the subcommand ``all`` runs it by default; none for never.
        cuda_arguments: used by ``all`` on CUDA, before those of the command line.
        quick_arguments: used by ``all --quick``.
    """

    options: type[Options]
    measure: Callable[[Any], list[Figure]]
    device_types: tuple[str, ...] = ()
    cuda_arguments: tuple[str, ...] = ()
    quick_arguments: tuple[str, ...] = ()


_BOTH = ("cpu", "cuda")
_FEW_STEPS = ("--items=3000", "--batch=32", "--dim=8", "--steps=2", "--repeats=2", "--users=400")
_FEW_RANKS = ("--items=3000", "--users=8", "--memory=16", "--repeats=2")

BENCHMARKS = {
    "ceilings": Benchmark(
        CeilingsBench, bench_ceilings, _BOTH, quick_arguments=("--block=1", "--size=64", "--repeats=2")
    ),
    "train": Benchmark(
        TrainBench,
        bench_train,
        _BOTH,
        cuda_arguments=("--users=977000", "--batch=8192", "--steps=50"),
        quick_arguments=(*_FEW_STEPS, "--history=5", "--negatives=16", "--warmup=1"),
    ),
    # On CUDA the paper's catalogue, a day's users, and tiles as large as a GPU needs them.
    "rank": Benchmark(
        RankBench,
        bench_rank,
        _BOTH,
        cuda_arguments=("--users=10000", "--memory=2048"),
        quick_arguments=(*_FEW_RANKS, "--dim=8"),
    ),
    "kernel": Benchmark(KernelBench, bench_kernel, ("cuda",), quick_arguments=_FEW_RANKS),
    "store": Benchmark(
        StoreBench,
        bench_store,
        _BOTH,
        cuda_arguments=("--batch=8192", "--steps=20"),
        quick_arguments=(*_FEW_STEPS, "--few=100", "--warmup=1"),
    ),
    "checkpoint": Benchmark(
        CheckpointBench,
        bench_checkpoint,
        _BOTH,
        cuda_arguments=("--users=977000", "--batch=8192"),
        quick_arguments=(*_FEW_STEPS, "--buckets=8"),
    ),
    "strategies": Benchmark(
        StrategiesBench,
        bench_strategies,
        _BOTH,
        quick_arguments=(
            *("--drift.users=80", "--drift.items=200", "--drift.clusters=20", "--drift.interactions=[2000, 1000]"),
            *("--spans=2", "--epochs=1", "--pretraining_epochs=1"),
        ),
    ),
    "span": Benchmark(SpanBench, bench_span, _BOTH),
    "prepare": Benchmark(PrepareBench, bench_prepare),
    "append": Benchmark(AppendBench, bench_append),
    "refresh": Benchmark(RefreshBench, bench_refresh),
}
