"""The paper's ablation on one data set: every variant from the same pre-trained model, for each base and seed."""

import logging
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dist_imsr.benchmarks.report import Figure
from dist_imsr.benchmarks.world import Device, settle, world
from dist_imsr.checks import require, require_file
from dist_imsr.config import parse
from dist_imsr.data.dataset import Dataset
from dist_imsr.distributed.interest_store import Slots
from dist_imsr.distributed.recommender import Snapshot
from dist_imsr.distributed.topology import Topology
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.state import Progress
from dist_imsr.training.trainer import Trainer

logger = logging.getLogger(__name__)

_PLAIN = {"detector.enabled": "false", "trimmer.project": "false", "retainer.name": "none"}
_PARTS: dict[str, dict[str, str]] = {
    "imsr": {},
    "imsr rho=0": {"rho": "0"},
    "imsr without NID and PIT": {"detector.enabled": "false"},
    "imsr without projection": {"trimmer.project": "false"},
    "imsr without EIR": {"retainer.name": "none"},
    **{f"imsr with {name}": {"retainer.name": name} for name in ("dir", "kd1", "kd2", "kd3")},
    "fine_tuning with carried evidence": _PLAIN,
}
_OTHER_BASES = ("comirec_sa", "mind")


def _arguments(strategy: str, base: str, parts: dict[str, str]) -> list[str]:
    chosen = [f"--strategy.name={strategy}", f"--model.base={base}"]
    return chosen + [f"--strategy.imsr.{key}={value}" for key, value in parts.items()]


VARIANTS = {
    **{name: _arguments(name, "comirec_dr", {}) for name in ("frozen", "fine_tuning")},
    **{name: _arguments("imsr", "comirec_dr", parts) for name, parts in _PARTS.items()},
    **{f"{name} {base}": _arguments(name, base, {}) for base in _OTHER_BASES for name in ("fine_tuning", "imsr")},
}


@dataclass(frozen=True)
class AblationBench:
    """Trains and tests the variants of the paper's ablation on one data set.

    Args:
        train: a YAML file of launch/train.py's keys, which the variants change.
        data: the prepared data; what the file says by default.
        seeds: each variant is trained once a seed.
        variants: some of them; all by default.
        device: what ranks work on; auto is CUDA where there is a device.
        ranks: processes; 0 for two on the host, and for one on each device of CUDA.
        threads: of each process.
        json: where the figures are written as a list of objects.
    """

    train: Path
    data: Path | None = None
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    device: Device = "auto"
    ranks: int = 0
    threads: int = 1
    json: Path | None = None

    def __post_init__(self) -> None:
        settle(self)
        require(self.train.is_file(), "train", str(self.train), "a file")
        require(bool(self.seeds), "seeds", self.seeds, "at least one")
        known = bool(self.variants) and set(self.variants) <= set(VARIANTS)
        require(known, "variants", self.variants, f"some of {', '.join(VARIANTS)}")
        require(self.threads >= 1, "threads", self.threads, "at least 1")
        require_file(self.json, "json")


def bench_ablation(options: AblationBench) -> list[Figure]:
    """Measures hr, ndcg and validation of each variant, means over spans; a run a seed.

    Variants of one base share the pre-trained model of a seed, which none of them changes: there are no existing
    interests yet.

    Args:
        options: the subcommand's.

    Returns:
        Three figures a variant.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level="ERROR", force=True)
    logger.setLevel("INFO")
    runs: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch, world(options, 3600.0) as ranks:
        for seed in options.seeds:
            for name in sorted(options.variants, key=_base):
                config = _config(options, name, seed, Path(scratch))
                lines = ranks.call(_variant, config)[0]
                for key in (*(f"{name}@{top}" for top in config.eval.top for name in ("hr", "ndcg")), "validation"):
                    there = [line[key] for line in lines if line[key] is not None]
                    if not there:  # frozen has nothing to validate
                        continue
                    mean = math.fsum(there) / len(there)
                    runs.setdefault(f"{name}: {key}", []).append(mean)
                    logger.info("seed %d, %s: %s %.4f", seed, name, key, mean)
    settings = {"data": str(config.data.path), "train": str(options.train), "seeds": options.seeds}
    return [Figure(name, "rate", each, settings) for name, each in runs.items()]


def _base(name: str) -> str:
    return VARIANTS[name][1]


def _config(options: AblationBench, name: str, seed: int, folder: Path) -> TrainConfig:
    data = [] if options.data is None else [f"--data.path={options.data}"]
    return parse(
        TrainConfig, [f"--config={options.train}", *data, *VARIANTS[name], f"--seed={seed}", f"--run_dir={folder}"]
    )


class _Pretrained(NamedTuple):
    """What the variants of a base and a seed begin with."""

    key: tuple[str, int]
    model: Snapshot
    owners: torch.Tensor
    slots: Slots


_pretrained: _Pretrained | None = None  # of this rank's process


def _variant(topology: Topology, config: TrainConfig) -> list[dict[str, Any]]:
    """Trains one variant; returns its lines."""
    global _pretrained
    trainer = Trainer(config, Dataset(config.data), topology)
    store, key = trainer.model.store, (config.model.base, config.seed)
    if _pretrained is None or _pretrained.key != key:
        trainer.learn(0)
        _pretrained = _Pretrained(key, trainer.model.snapshot(), store.owners, _copied(store.slots))
    else:
        store.load(_pretrained.owners, **_copied(_pretrained.slots)._asdict())
        trainer.model.restore(_pretrained.model)
        trainer.progress = Progress(span=1)
    return trainer.run()


def _copied(slots: Slots) -> Slots:
    return Slots(*(column.clone() for column in slots))
