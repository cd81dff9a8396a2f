"""Whole spans of prepared data under several strategies, each from the same pre-trained model: seconds and memory."""

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from dist_imsr import devices
from dist_imsr.benchmarks.ceilings import COPY
from dist_imsr.benchmarks.floors import GPU, measured, per, product
from dist_imsr.benchmarks.report import Bound, Figure, Least, Rates, ratios
from dist_imsr.benchmarks.world import Device, settings_of, settle, world
from dist_imsr.checks import require, require_file, require_folder
from dist_imsr.config import resolve
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.distributed.topology import Topology, quiet
from dist_imsr.phases import process_memory
from dist_imsr.planning.hardware import HardwareConfig
from dist_imsr.planning.memory import MemoryPhase, total
from dist_imsr.planning.prepared import plan_of
from dist_imsr.training.checkpoint import name_of
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.profile import read
from dist_imsr.training.run import begin, check

_PATIENCE = 3600.0  # seconds that one run may take
_BLOCK = 16 << 20  # bytes that are read at a time
_SHOWN = 0.01  # of a span, from which on a phase has a figure; all are among the details
_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_PAIR = "imsr", "fine_tuning"
PAPER = {
    "comirec_dr": {"imsr": [941, 962, 954, 994, 983], "fine_tuning": [928, 949, 932, 941, 946]},
    "comirec_sa": {"imsr": [1012, 1031, 1041, 1104, 1083], "fine_tuning": [972, 991, 992, 1001, 982]},
}
"""Training seconds of the spans 1 to 5 of Taobao in the paper's Table V, on an RTX 2080 Ti."""
PLANNED = {
    "growing": "growing the table",
    "admitting": "new interests",
    **dict.fromkeys(("training", "validation", "detector", "write-back"), "training"),
    "trimmer": "trimming",
}
"""The moments of a plan by the phases of a run."""


@dataclass(frozen=True)
class SpanBench:
    """Times the spans behind pre-training on prepared data, and compares their memory with the plan.

    Args:
        data: a folder that launch/prepare.py wrote.
        train: YAML files of launch/train.py's keys, later ones winning; by default configs/scale_training.yaml, and
            configs/cuda_taobao.yaml behind it on CUDA.
        set: further arguments of launch/train.py, as in ["--batch.size=4096"].
        set_base: the same for one base model; the threshold is that of docs/scale.md.
        spans: how many are trained, from the first one behind pre-training on.
        bases: base models, each of which is pre-trained once.
        strategies: that go on from it, one after the other.
        repeats: runs of each; every second time in reverse order.
        exact: one more run of each in which every phase waits for the device and so gets its own seconds, which
            takes time; on the host phases have their own seconds anyway.
        device: what ranks work on; auto is CUDA where there is a device.
        ranks: processes; 0 for two on the host, and for one on each device of CUDA.
        threads: of each process.
        folder: where runs are kept, and removed at the end; the current directory by default.
        json: where the figures are written as a list of objects.
    """

    data: Path
    train: list[Path] = field(default_factory=list)
    set: list[str] = field(default_factory=list)
    set_base: dict[str, list[str]] = field(default_factory=lambda: {"comirec_sa": ["--strategy.imsr.detector.c1=0.15"]})
    spans: int = 1
    bases: list[str] = field(default_factory=lambda: list(PAPER))
    strategies: list[str] = field(default_factory=lambda: list(_PAIR))
    repeats: int = 1
    exact: bool = False
    device: Device = "auto"
    ranks: int = 0
    threads: int = 1
    folder: Path | None = None
    json: Path | None = None

    def __post_init__(self) -> None:
        settle(self)
        there = (self.data / "dataset.json").is_file()
        require(there, "data", str(self.data), "a folder that launch/prepare.py wrote")
        if not self.train:
            files = ["scale_training.yaml", *["cuda_taobao.yaml"] * (self.device == "cuda")]
            object.__setattr__(self, "train", [_CONFIGS / name for name in files])
        for path in self.train:
            require(path.is_file(), "train", str(path), "files")
        for key in ("spans", "threads", "repeats"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        for key in ("bases", "strategies"):
            require(bool(getattr(self, key)), key, getattr(self, key), "at least one")
        dataset = Dataset(DataConfig(self.data))
        require(dataset.buckets >= self.ranks, "ranks", self.ranks, f"no more than buckets of users, {dataset.buckets}")
        for base in self.bases:
            for strategy in self.strategies:
                config = self.config(base, strategy, Path("run"))
                config.training.last(dataset.spans)
                config.catalogue.optimizer_on(torch.device(self.device))
        require_folder(self.folder or Path(), "folder")
        require_file(self.json, "json")

    def config(self, base: str, strategy: str, run_dir: Path, *more: str) -> TrainConfig:
        """What launch/train.py would be told.

        Args:
            base: the base model.
            strategy: by name.
            run_dir: the run's folder.
            more: arguments behind all others.

        Returns:
            The whole tree.

        Raises:
            ValueError: with the key's name.
        """
        own = [f"--data.path={self.data}", f"--run_dir={run_dir}", f"--training.spans={self.spans}"]
        chosen = [f"--model.base={base}", f"--strategy.name={strategy}"]
        files = [f"--config={path}" for path in self.train]
        return resolve(TrainConfig, [*files, *self.set, *self.set_base.get(base, []), *chosen, *own, *more])


class _Ran(NamedTuple):
    """What one run told, span by span behind pre-training."""

    metrics: list[dict[str, Any]]
    phases: list[dict[str, Any]]
    process: int  # bytes that a rank held before it built anything


def bench_span(options: SpanBench) -> list[Figure]:
    """Measures what a span takes under each strategy.

    ``train_seconds`` are those of the paper's tables: everything that is done with a span but opening it, testing and
    writing checkpoints; ``span_seconds`` are all. ``users_per_second`` divides the span's active users by the former.
    Each span and repetition is one run of a figure.

    The ceiling is what `dist_imsr.planning` predicts for these data if copies and products went as fast as they were
    measured and all else were free. It takes every epoch as trained, and the interests that users gain as
    `LoadConfig` assumes them.

    Args:
        options: the subcommand's.

    Returns:
        For each base and strategy the seconds, users/s, the shares of a span's time that outermost phases take, and the
        most bytes that a rank held over what was planned; for each base the seconds of imsr over those of fine_tuning.

    Raises:
        RuntimeError: if a rank failed.
    """
    dataset, figures = Dataset(DataConfig(options.data)), list[Figure]()
    quiet()  # the planner is asked in this process
    _read_ahead(options)
    with tempfile.TemporaryDirectory(prefix="bench-span-", dir=(options.folder or Path()).resolve()) as scratch:
        for base in options.bases:
            first = Path(scratch) / base / "pretraining"
            alone = "--training.spans=0", "--checkpoint.enabled=true"
            _run(options, options.config(base, options.strategies[0], first, *alone))
            onward = f"--resume={first / 'checkpoints' / name_of(1, 0, 0)}"
            runs: dict[str, list[_Ran]] = {strategy: [] for strategy in options.strategies}
            exact: dict[str, _Ran] = {}
            for repeat in range(options.repeats):
                for strategy in options.strategies[:: -1 if repeat % 2 else 1]:
                    folder = Path(scratch) / base / f"{strategy}-{repeat}"
                    runs[strategy].append(_run(options, options.config(base, strategy, folder, onward)))
            for strategy in options.strategies if options.exact else []:
                folder = Path(scratch) / base / f"{strategy}-exact"
                exact[strategy] = _run(options, options.config(base, strategy, folder, onward, "--profile=true"))
            for strategy, ran in runs.items():
                config = options.config(base, strategy, first)
                figures += _figures(options, dataset, config, ran, exact.get(strategy))
            if set(_PAIR) <= set(runs):
                ours, theirs = (_seconds(runs[name]) for name in _PAIR)
                told = {"paper_seconds": {strategy: _paper(base, strategy) for strategy in _PAIR}}
                name = f"imsr_over_fine_tuning_seconds_{base}"
                figures.append(Figure(name, "ratio", ratios(ours, theirs), settings_of(options), details=told))
    return figures


def _figures(
    options: SpanBench, dataset: Dataset, config: TrainConfig, runs: list[_Ran], exact: _Ran | None
) -> list[Figure]:
    """The figures of one base model under one strategy."""
    base, strategy = config.model.base, config.strategy.name
    name, settings = f"{strategy}_{base}", settings_of(options) | {"base": base, "strategy": strategy}
    process = max(one.process for one in runs)
    hardware = HardwareConfig(memory=_bytes(options))
    plan = plan_of(dataset, config, options.ranks, GPU[options.device], hardware, process)
    lines = [line for one in runs for line in one.phases]
    seconds, users = _seconds(runs), [plan.spans[line["span"]].users for line in lines]
    bound = _bound(options, dataset, config)
    told = {"paper_seconds": _paper(base, strategy), "metrics": [line for one in runs for line in one.metrics]}
    phases = {"phases": lines, "exact_phases": exact and exact.phases}
    figures = [
        Figure(f"{name}_train_seconds", "s", seconds, settings, bound, told),
        Figure(f"{name}_span_seconds", "s", [line["total_seconds"] for line in lines], settings, details=phases),
        Figure(f"{name}_users_per_second", "users/s", ratios(users, seconds), settings, per(bound, fmean(users))),
    ]
    outermost = dict.fromkeys(path for line in lines for path in line["seconds"] if "/" not in path)
    for phase in outermost:
        taken = [{path: line["seconds"].get(path, {"mean": 0.0})["mean"] for path in outermost} for line in lines]
        shares = [one[phase] / sum(one.values()) for one in taken]
        if max(shares) >= _SHOWN:
            figures.append(Figure(f"{name}_share_of_{phase}", "share", shares, settings))
    memory = [_memory(options, plan.accounts.phases(), line) for line in lines]
    over = [max(one["bytes"] for one in each) / max(one["planned_bytes"] or 0 for one in each) for each in memory]
    details = {"memory": [one for each in memory for one in each]}
    return [*figures, Figure(f"{name}_peak_bytes_over_plan", "ratio", over, settings, details=details)]


def _memory(options: SpanBench, plan: list[MemoryPhase], line: dict[str, Any]) -> list[dict[str, Any]]:
    """What the fullest rank held in each phase of a span, beside what was planned of the device, or of the host."""
    on_cuda, told = options.device == "cuda", []
    for name, seen in line["memory"].items():
        resident = [peak - files for peak, files in zip(seen["peak"], seen["files"], strict=True)]
        wanted = line["span"], PLANNED.get(name)
        planned = next((phase for phase in plan if (phase.span, phase.name) == wanted), None)
        device, host = (total(planned.device), total(planned.host)) if planned else (None, None)
        both = planned and total(planned.device) + total(planned.host)
        told.append(
            {
                "span": line["span"],
                "phase": name,
                "bytes": max(seen["device"]) if on_cuda else max(resident),
                "planned_bytes": device if on_cuda else both,
                "host_bytes": max(resident),
                "planned_host_bytes": host if on_cuda else both,
            }
        )
    return told


def _bound(options: SpanBench, dataset: Dataset, config: TrainConfig) -> Bound:
    """The mean of the trained spans' least seconds."""

    def least(rates: Rates) -> Least:
        hardware = replace(measured(rates, options.ranks, config.engine), memory=_bytes(options))
        plan = plan_of(dataset, config, options.ranks, GPU[options.device], hardware)
        spans = plan.spans[1 : options.spans + 1]
        terms = [plan.clock.span(span, None) for span in spans]  # without a test
        return Least(f"{COPY} and {product(rates, config.engine)}", fmean(sum(one.values()) for one in terms))

    return least


def _bytes(options: SpanBench) -> int | None:
    """The memory of a device; None for the host, where the planner needs none."""
    return devices.memory_bytes(torch.device(options.device))


def _paper(base: str, strategy: str) -> dict[str, Any] | None:
    """What the paper tells of the same, with what it was measured on."""
    if strategy not in PAPER.get(base, {}):
        return None
    return {"device": "RTX 2080 Ti", "data": "Taobao", "spans": [1, 2, 3, 4, 5], "seconds": PAPER[base][strategy]}


def _seconds(runs: list[_Ran]) -> list[float]:
    return [line["train_seconds"] for one in runs for line in one.metrics]


def _run(options: SpanBench, config: TrainConfig) -> _Ran:
    """Trains in processes of its own, which hold nothing of the run before."""
    config.run_dir.mkdir(parents=True)
    with world(options, _PATIENCE) as ranks:
        process = max(ranks.call(_train, config))
    lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    return _Ran([json.loads(line) for line in lines], [line for line in read(config.run_dir) if line["span"]], process)


def _train(topology: Topology, config: TrainConfig) -> int:
    """Does what launch/train.py does; returns the bytes that this process held before it."""
    told = process_memory()
    begin(config, *check(config), topology, None).run()
    return told["RssAnon"] + told["RssShmem"]


def _read_ahead(options: SpanBench) -> None:
    """Brings the files of all spans that are read to memory, so that the first strategy does not wait for the disk."""
    for span in range(options.spans + 2):
        for path in (options.data / f"span={span}").iterdir():
            with path.open("rb", buffering=0) as file:
                while file.read(_BLOCK):
                    pass
