"""Whole spans of prepared data under several strategies, all from one pre-trained model: seconds and memory."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import mkdtemp
from typing import Any, NamedTuple

import torch

from dist_imsr import devices
from dist_imsr.benchmarks.ceilings import COPY
from dist_imsr.benchmarks.floors import GPU, measured, per, product
from dist_imsr.benchmarks.options import FolderOptions, WorldOptions
from dist_imsr.benchmarks.report import Bound, Figure, Floor, Rates, ratios
from dist_imsr.benchmarks.world import World, take_turns
from dist_imsr.checks import require
from dist_imsr.config import resolve
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.distributed.topology import Topology, quiet_libraries
from dist_imsr.phases import process_memory
from dist_imsr.planning.hardware import HardwareConfig
from dist_imsr.planning.memory import MemoryPhase, total
from dist_imsr.planning.plan import plan_of
from dist_imsr.training.checkpoint import name_of
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.profile import read
from dist_imsr.training.run import begin, check

_CALL_SECONDS = 3600.0  # limit of one run
_BLOCK = 16 << 20  # bytes read at a time
_LEAST_SHARE = 0.01  # of a span: shorter phases are in the details alone
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
"""The phases of a plan by the phases of a run."""


@dataclass(frozen=True, kw_only=True)
class SpanBench(WorldOptions, FolderOptions):
    """Times the spans after pre-training on prepared data, and compares their memory with the plan.

    Args:
        data: a folder that launch/prepare.py wrote.
        train: YAML files of launch/train.py's keys, later ones winning; by default configs/scale_training.yaml,
            followed on CUDA by configs/cuda_taobao.yaml.
        set: further arguments of launch/train.py, as in ["--batch.size=4096"].
        set_base: the same for one base model.
        spans: number of trained spans, from the first one after pre-training.
        bases: base models, each of which is pre-trained once.
        strategies: that continue from it, one after the other.
        repeats: runs of each; every second time in reverse order.
        exact: one more run of each in which every phase waits for the device, which gives each phase its own seconds
            but takes time; on the host phases have their own seconds in any case.
    """

    data: Path
    train: list[Path] = field(default_factory=list)
    set: list[str] = field(default_factory=list)
    set_base: dict[str, list[str]] = field(default_factory=dict)
    spans: int = 1
    bases: list[str] = field(default_factory=lambda: list(PAPER))
    strategies: list[str] = field(default_factory=lambda: list(_PAIR))
    repeats: int = 1
    exact: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        prepared = (self.data / "dataset.json").is_file()
        require(prepared, "data", str(self.data), "a folder that launch/prepare.py wrote")
        if not self.train:
            files = ["scale_training.yaml", *["cuda_taobao.yaml"] * (self.device == "cuda")]
            object.__setattr__(self, "train", [_CONFIGS / name for name in files])
        for path in self.train:
            require(path.is_file(), "train", str(path), "files")
        for key in ("bases", "strategies"):
            require(bool(getattr(self, key)), key, getattr(self, key), "at least one")
        dataset = Dataset(DataConfig(self.data))
        require(dataset.buckets >= self.ranks, "ranks", self.ranks, f"no more than buckets of users, {dataset.buckets}")
        for base in self.bases:
            for strategy in self.strategies:
                config = self.config(base, strategy, Path("run"))
                config.training.last(dataset.spans)
                config.catalogue.check_device(torch.device(self.device))

    def config(self, base: str, strategy: str, run_dir: Path, *more: str) -> TrainConfig:
        """The configuration of one run of launch/train.py.

        Args:
            base: the base model.
            strategy: by name.
            run_dir: the run's folder.
            more: further arguments, which override all others.

        Raises:
            ValueError: with the key's name.
        """
        own = [f"--data.path={self.data}", f"--run_dir={run_dir}", f"--training.spans={self.spans}"]
        chosen = [f"--model.base={base}", f"--strategy.name={strategy}"]
        files = [f"--config={path}" for path in self.train]
        return resolve(TrainConfig, [*files, *self.set, *self.set_base.get(base, []), *chosen, *own, *more])


class Run(NamedTuple):
    """A finished run.

    Args:
        config: of the run.
        metrics: the lines of metrics.jsonl.
        phases: seconds and memory of phases, by span after pre-training.
        process: bytes that a rank held before it built anything.
    """

    config: TrainConfig
    metrics: list[dict[str, Any]]
    phases: list[dict[str, Any]]
    process: int


def bench_span(options: SpanBench) -> list[Figure]:
    """Measures a span's time and memory under each strategy.

    ``train_seconds`` are those of the paper's tables: the whole span except opening it, testing and writing
    checkpoints, which ``span_seconds`` include. ``users_per_second`` divides the span's active users by
    ``train_seconds``. Each span of each repeat is one run of a figure.

    The ceiling is the prediction of `dist_imsr.planning` for these data if copies and products were as fast as measured
    and the rest took no time. It counts every epoch as trained, and the interests that users gain as `LoadConfig`
    assumes them.

    Returns:
        For each base and strategy the seconds, users/s, the shares of a span's outermost phases, and a rank's peak of
        memory over the planned one; for each base the seconds of imsr over those of fine_tuning.

    Raises:
        RuntimeError: if a rank failed.
    """
    dataset, figures = Dataset(DataConfig(options.data)), list[Figure]()
    quiet_libraries()  # the planner runs in this process
    _fill_page_cache(options)
    with options.scratch() as folder:
        for base in options.bases:
            first = ("--training.spans=0", "--checkpoint.enabled=true")
            pretrained = _run(options, base, options.strategies[0], folder, *first).config.run_dir
            resume = f"--resume={pretrained / 'checkpoints' / name_of(1, 0, 0)}"
            sides = [partial(_run, options, base, strategy, folder, resume) for strategy in options.strategies]
            runs = dict(zip(options.strategies, take_turns(options.repeats, *sides), strict=True))
            exact = [side("--profile=true") for side in sides] if options.exact else [None] * len(sides)
            for ran, profiled in zip(runs.values(), exact, strict=True):
                figures += _figures(options, dataset, ran, profiled)
            if set(_PAIR) <= set(runs):
                ours, theirs = (_seconds(runs[name]) for name in _PAIR)
                paper = {"paper_seconds": {strategy: _paper(base, strategy) for strategy in _PAIR}}
                name = f"imsr_over_fine_tuning_seconds_{base}"
                figures.append(Figure(name, "ratio", ratios(ours, theirs), options.settings, details=paper))
    return figures


def _figures(options: SpanBench, dataset: Dataset, runs: Sequence[Run], exact: Run | None) -> list[Figure]:
    """The figures of one base model under one strategy."""
    config = runs[0].config
    base, strategy = config.model.base, config.strategy.name
    name, settings = f"{strategy}_{base}", options.settings | {"base": base, "strategy": strategy}
    process = max(run.process for run in runs)
    hardware = HardwareConfig(memory=_device_bytes(options))
    plan = plan_of(dataset, config, options.ranks, GPU[options.device], hardware, process)
    lines = [line for run in runs for line in run.phases]
    seconds, users = _seconds(runs), [plan.memory.spans[line["span"]].users for line in lines]
    bound = _bound(options, dataset, config)
    metrics = {"paper_seconds": _paper(base, strategy), "metrics": [line for run in runs for line in run.metrics]}
    phases = {"phases": lines, "exact_phases": exact and exact.phases}
    figures = [
        Figure(f"{name}_train_seconds", "s", seconds, settings, bound, metrics),
        Figure(f"{name}_span_seconds", "s", [line["total_seconds"] for line in lines], settings, details=phases),
        Figure(f"{name}_users_per_second", "users/s", ratios(users, seconds), settings, per(bound, fmean(users))),
    ]
    outermost = dict.fromkeys(path for line in lines for path in line["seconds"] if "/" not in path)
    for phase in outermost:
        by_phase = [{path: line["seconds"].get(path, {"mean": 0.0})["mean"] for path in outermost} for line in lines]
        shares = [one[phase] / sum(one.values()) for one in by_phase]
        if max(shares) >= _LEAST_SHARE:
            figures.append(Figure(f"{name}_share_of_{phase}", "share", shares, settings))
    memory = [_memory(options, plan.memory.phases(), line) for line in lines]
    over = [max(one["bytes"] for one in each) / max(one["planned_bytes"] or 0 for one in each) for each in memory]
    details = {"memory": [one for each in memory for one in each]}
    return [*figures, Figure(f"{name}_peak_bytes_over_plan", "ratio", over, settings, details=details)]


def _memory(options: SpanBench, plan: list[MemoryPhase], line: dict[str, Any]) -> list[dict[str, Any]]:
    """The bytes of the rank with the most in each phase of a span, and those planned, of the device or the host."""
    on_cuda, rows = options.device == "cuda", []
    for name, memory in line["memory"].items():
        resident = [peak - files for peak, files in zip(memory["peak"], memory["files"], strict=True)]
        wanted = line["span"], PLANNED.get(name)
        planned = next((phase for phase in plan if (phase.span, phase.name) == wanted), None)
        device, host = (total(planned.device), total(planned.host)) if planned else (None, None)
        both = planned and total(planned.device) + total(planned.host)
        rows.append(
            {
                "span": line["span"],
                "phase": name,
                "bytes": max(memory["device"]) if on_cuda else max(resident),
                "planned_bytes": device if on_cuda else both,
                "host_bytes": max(resident),
                "planned_host_bytes": host if on_cuda else both,
            }
        )
    return rows


def _bound(options: SpanBench, dataset: Dataset, config: TrainConfig) -> Bound:
    """The mean of the trained spans' shortest seconds."""

    def shortest(rates: Rates) -> Floor:
        hardware = replace(measured(rates, options.ranks, config.engine), memory=_device_bytes(options))
        plan = plan_of(dataset, config, options.ranks, GPU[options.device], hardware)
        spans = plan.memory.spans[1 : options.spans + 1]
        terms = [plan.span_seconds(span, None) for span in spans]  # without a test
        return Floor(f"{COPY} and {product(rates, config.engine)}", fmean(sum(one.values()) for one in terms))

    return shortest


def _device_bytes(options: SpanBench) -> int | None:
    """The memory of a device; None for the host, where the planner needs none."""
    return devices.memory_bytes(torch.device(options.device))


def _paper(base: str, strategy: str) -> dict[str, Any] | None:
    """The paper's measurement of a strategy, and its device."""
    if strategy not in PAPER.get(base, {}):
        return None
    return {"device": "RTX 2080 Ti", "data": "Taobao", "spans": [1, 2, 3, 4, 5], "seconds": PAPER[base][strategy]}


def _seconds(runs: Sequence[Run]) -> list[float]:
    return [line["train_seconds"] for run in runs for line in run.metrics]


def _run(options: SpanBench, base: str, strategy: str, folder: Path, *more: str) -> Run:
    """Trains in new processes, which hold no memory of an earlier run."""
    config = options.config(base, strategy, Path(mkdtemp(prefix=f"{strategy}-{base}-", dir=folder)), *more)
    with World(options, _CALL_SECONDS) as world:
        process = max(world.call(_train, config))
    lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    phases = [line for line in read(config.run_dir) if line["span"]]
    return Run(config, [json.loads(line) for line in lines], phases, process)


def _train(topology: Topology, config: TrainConfig) -> int:
    """Does the work of launch/train.py; returns the bytes that this process held before."""
    memory = process_memory()
    begin(config, *check(config), topology, None).run()
    return memory["RssAnon"] + memory["RssShmem"]


def _fill_page_cache(options: SpanBench) -> None:
    """Reads the files of all spans, so that the first strategy does not wait for the disk."""
    for span in range(options.spans + 2):
        for path in (options.data / f"span={span}").iterdir():
            with path.open("rb", buffering=0) as file:
                while file.read(_BLOCK):
                    pass
