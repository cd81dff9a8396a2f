"""The runs of a comparison, and what their folders tell of them."""

import json
import logging
import shutil
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import xxhash

from dist_imsr.data.dataset import Dataset
from dist_imsr.files import write_whole
from dist_imsr.strategies import build_strategy
from dist_imsr.training.checkpoint import CheckpointConfig, name_of
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.identity import identity, pretraining

logger = logging.getLogger(__name__)
_RECORD = "cell.json"
_HEAVY = ("checkpoints", "spans")
_PACKAGE = Path(__file__).resolve().parents[1]


class State(NamedTuple):
    """How a run stands.

    Args:
        status: ``new`` where there is nothing of it, or of one with other keys.
        reason: why it failed.
        seconds: that its last process took.
    """

    status: Literal["new", "started", "done", "failed"]
    reason: str = ""
    seconds: float = 0.0


@dataclass(eq=False)
class Job:
    """One run, in a folder of its own.

    Args:
        name: what is told of it.
        config: the whole tree; its run_dir is the folder.
        arguments: of launch/train.py, that make the same run alone.
        told: what makes it the run that it is.
        needs: the pre-training that it goes on from.
        keeps: whether its checkpoints stay when it has ended.
    """

    name: str
    config: TrainConfig
    arguments: list[str]
    told: dict[str, Any]
    needs: "Job | None" = None
    keeps: bool = False
    state: State = field(init=False)
    older: bool = field(init=False, default=False)
    """Whether it has ended, but was trained by other sources of this package."""

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Reads its state anew, which another process may have changed."""
        self.state = self._read()

    @property
    def folder(self) -> Path:
        """Where it stands."""
        return self.config.run_dir

    @property
    def done(self) -> bool:
        """Whether it has ended well, and its numbers are there."""
        return self.state.status == "done"

    def lines(self) -> list[dict[str, Any]]:
        """What it measured so far.

        Returns:
            The lines of metrics.jsonl.
        """
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def users(self) -> list[Path]:
        """What it measured of each user.

        Returns:
            A Parquet file for each line that somebody was tested for.
        """
        return [self.folder / "users" / f"span={line['test_span']}.parquet" for line in self.lines() if line["users"]]

    def begin(self) -> None:
        """Notes that it was begun; what stands in its folder of a run with other keys is removed."""
        if self.state.status == "new" and (self.folder / _RECORD).exists():
            logger.info("%s: its configuration or its files changed, so it is run again", self.name)
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(State("started"))

    def end(self, state: State) -> None:
        """Notes how it ended, and removes what nobody needs any more.

        Args:
            state: how it stands.
        """
        self._write(state)
        if self.done and not self.keeps:
            for name in _HEAVY:
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _write(self, state: State) -> None:
        self.state = state
        record = {**state._asdict(), "arguments": self.arguments, "identity": self.told, "sources": sources()}
        write_whole(self.folder / _RECORD, json.dumps(record, indent=1) + "\n")

    def _read(self) -> State:
        try:
            record = json.loads((self.folder / _RECORD).read_text())
            state = State(*(record[name] for name in State._fields))
        except (OSError, ValueError, KeyError, TypeError):
            return State("new")
        if record.get("identity") != json.loads(json.dumps(self.told)):
            return State("new")
        if state.status == "done" and not self._whole():
            return State("new")
        self.older = state.status == "done" and record.get("sources") != sources()
        return state

    def _whole(self) -> bool:
        if self.config.training.spans == 0:
            return self.pretrained.is_dir()
        return bool(self.lines()) and (not self.config.eval.per_user or all(path.is_file() for path in self.users()))

    @property
    def pretrained(self) -> Path:
        """The checkpoint right behind its pre-training."""
        return self.folder / "checkpoints" / name_of(1, 0, 0)


@cache
def sources() -> str:
    """What this package's own sources are.

    Returns:
        A digest of them.
    """
    digest = xxhash.xxh3_64()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Jobs:
    """Makes the runs of a comparison; those that agree in what pre-training reads share one pre-training.

    Args:
        output: the comparison's folder.
        device: where runs train.
        keep: whether checkpoints of finished runs stay.
    """

    def __init__(self, output: Path, device: torch.device, keep: bool) -> None:
        self.output, self.device, self.keep = output, device, keep
        self._pretrainings: dict[Path, Job] = {}
        self._all: list[Job] = []

    def refresh(self) -> None:
        """Reads the states of all runs anew."""
        for job in self._all:
            job.refresh()
        older = [job.folder for job in self._all if job.older]
        if older:
            logger.warning(
                "%d finished run(s) were trained by other sources of dist_imsr, such as %s; their numbers stay. Remove "
                "a folder to have it trained anew",
                *(len(older), older[0]),
            )

    def job(self, place: Path, config: TrainConfig, arguments: list[str], dataset: Dataset, name: str) -> Job:
        """A run that goes on from a shared pre-training.

        Args:
            place: of its folder in the output.
            config: the whole tree but for the folder.
            arguments: of launch/train.py but for seed and folder.
            dataset: the prepared data.
            name: what is told of it.

        Returns:
            The run.
        """
        needs = self._pretraining(config, arguments, dataset, name)
        config = replace(config, run_dir=self.output / place, resume=str(needs.pretrained))
        told = identity(config, dataset.digest, self.device)
        return self._made(name, config, arguments, told, needs, self.keep)

    def _pretraining(self, config: TrainConfig, arguments: list[str], dataset: Dataset, name: str) -> Job:
        told = pretraining(identity(config, dataset.digest, self.device))
        digest = xxhash.xxh3_64_hexdigest(json.dumps(told, sort_keys=True).encode())
        data, base, *_ = name.split("/")
        folder = self.output / "pretraining" / data / base / f"seed={config.seed}-{digest}"
        if folder not in self._pretrainings:
            strategy = config.strategy
            if build_strategy(strategy).counts is None:  # whoever counts interests begins with as many
                strategy, arguments = replace(strategy, name="frozen"), [*arguments, "--strategy.name=frozen"]
            config = replace(
                config,
                run_dir=folder,
                resume="auto",
                strategy=strategy,
                training=replace(config.training, spans=0, export="none"),
                eval=replace(config.eval, per_user=False),
                checkpoint=CheckpointConfig(enabled=True, every_steps=config.checkpoint.every_steps, keep_last=1),
            )
            arguments = [*arguments, "--training.spans=0"]
            name = f"{data}/{base}/pre-training/seed={config.seed}"
            self._pretrainings[folder] = self._made(name, config, arguments, told, None, True)
        return self._pretrainings[folder]

    def _made(
        self, name: str, config: TrainConfig, arguments: list[str], told: dict[str, Any], needs: Job | None, keeps: bool
    ) -> Job:
        arguments = [*arguments, f"--seed={config.seed}", f"--run_dir={config.run_dir}"]
        job = Job(name, config, arguments, told | {"training.spans": config.training.spans}, needs, keeps)
        self._all.append(job)
        return job
