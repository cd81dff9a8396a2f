"""The runs of a comparison, and their states as their folders record them."""

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import xxhash

from dist_imsr.baselines.config import BaselinesConfig
from dist_imsr.config import plain
from dist_imsr.data.dataset import Dataset
from dist_imsr.files import write_whole
from dist_imsr.training.checkpoint import CheckpointConfig, name_of
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.identity import identity, pretraining, read_keys

logger = logging.getLogger(__name__)
_RECORD = "cell.json"
_HEAVY = ("checkpoints", "spans")
_PACKAGE = Path(__file__).resolve().parents[1]


class State(NamedTuple):
    """The state of a run.

    Args:
        status: ``new`` for a run without a folder, or with the folder of a run with other keys.
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
        name: for log lines.
        folder: its own.
        config: the whole tree.
        arguments: of launch/train.py or launch/baselines.py, that make the same run alone.
        identity: the keys that another run would differ in.
        needs: the pre-training that it continues; None for a pre-training.
        keep: whether its checkpoints stay when it has finished.
    """

    name: str
    folder: Path
    config: TrainConfig | BaselinesConfig
    arguments: list[str]
    identity: dict[str, Any]
    needs: "Job | None" = None
    keep: bool = False
    state: State = field(init=False)
    outdated: bool = field(init=False, default=False)
    """Whether it finished, but with other sources of this package."""

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Reads the state again, which another process may have changed."""
        self.state = self._read()

    @property
    def is_baseline(self) -> bool:
        """Whether it is the run of a baseline."""
        return isinstance(self.config, BaselinesConfig)

    @property
    def done(self) -> bool:
        """Whether it finished, and its numbers are complete."""
        return self.state.status == "done"

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def users(self) -> list[Path]:
        """The Parquet files of users' own metrics, one for each tested span with users."""
        return [self.folder / "users" / f"span={line['test_span']}.parquet" for line in self.lines() if line["users"]]

    def begin(self) -> None:
        """Records the start, and removes the folder of a run with other keys."""
        if self.state.status == "new" and (self.folder / _RECORD).exists():
            logger.info("%s: its configuration or its files changed, so it is run again", self.name)
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write(State("started"))

    def end(self, state: State) -> None:
        """Records the end, and removes large files that are not needed any more."""
        self._write(state)
        if self.done and not self.keep:
            for name in _HEAVY:
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _write(self, state: State) -> None:
        self.state = state
        record = {**state._asdict(), "arguments": self.arguments, "identity": self.identity, "sources": sources()}
        write_whole(self.folder / _RECORD, json.dumps(record, indent=1) + "\n")

    def _read(self) -> State:
        try:
            record = json.loads((self.folder / _RECORD).read_text())
            state = State(*(record[name] for name in State._fields))
        except (OSError, ValueError, KeyError, TypeError):
            return State("new")
        if read_keys(record.get("identity") or {}) != read_keys(json.loads(json.dumps(self.identity))):
            return State("new")
        if state.status == "done" and not self._complete():
            return State("new")
        self.outdated = state.status == "done" and record.get("sources") != sources()
        return state

    def _complete(self) -> bool:
        if not isinstance(self.config, BaselinesConfig):
            if self.config.training.spans == 0:
                return self.pretrained.is_dir()
            if not self.config.eval.per_user:
                return bool(self.lines())
        return bool(self.lines()) and all(path.is_file() for path in self.users())

    @property
    def pretrained(self) -> Path:
        """The checkpoint right after its pre-training."""
        return self.folder / "checkpoints" / name_of(1, 0, 0)


@cache
def sources() -> str:
    """A digest of this package's own sources."""
    digest = xxhash.xxh3_64()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Jobs:
    """Makes the runs of a comparison; those with the same keys for pre-training share one pre-training.

    Args:
        output: the comparison's folder.
        keep: whether checkpoints of finished runs stay.
    """

    def __init__(self, output: Path, keep: bool) -> None:
        self.output, self.keep = output, keep
        self._pretrainings: dict[Path, Job] = {}
        self._all: list[Job] = []

    def refresh(self) -> None:
        """Reads the states of all runs again."""
        for job in self._all:
            job.refresh()
        outdated = [job.folder for job in self._all if job.outdated]
        if outdated:
            logger.warning(
                "%d finished run(s) were trained by other sources of dist_imsr, such as %s; their numbers stay. Remove "
                "a folder to train it again",
                len(outdated),
                outdated[0],
            )

    def job(self, path: Path, config: TrainConfig, arguments: list[str], dataset: Dataset, name: str) -> Job:
        """A run that continues a shared pre-training.

        Args:
            path: of its folder in the output.
            config: the whole tree but for the folder.
            arguments: of launch/train.py but for seed and folder.
            dataset: the prepared data.
            name: data set, base model and what distinguishes it, with slashes.
        """
        needs = self._pretraining(config, arguments, dataset, name)
        config = replace(config, run_dir=self.output / path, resume=str(needs.pretrained))
        return self._made(name, config, arguments, self._identity(config, dataset), needs)

    def baseline(self, path: Path, config: BaselinesConfig, arguments: list[str], dataset: Dataset) -> Job:
        """The run of a baseline.

        Args:
            path: of its folder in the output.
            config: the keys but for the files.
            arguments: of launch/baselines.py but for the files.
            dataset: the prepared data.
        """
        folder = self.output / path
        config = replace(config, output=folder / "metrics.jsonl", users=folder / "users")
        keys = ("baselines", "spans", "eval", *config.baselines)
        identity = {key: plain(asdict(config))[key] for key in keys} | _data(dataset)
        arguments = [*arguments, f"--output={config.output}", f"--users={config.users}"]
        job = Job("/".join(path.parts[1:]), folder, config, arguments, identity)
        self._all.append(job)
        return job

    def _pretraining(self, config: TrainConfig, arguments: list[str], dataset: Dataset, name: str) -> Job:
        parts = pretraining(self._identity(config, dataset))
        digest = xxhash.xxh3_64_hexdigest(json.dumps(parts, sort_keys=True).encode())
        data, base, *_ = name.split("/")
        folder = self.output / "pretraining" / data / base / f"seed={config.seed}-{digest}"
        if folder not in self._pretrainings:
            frozen = replace(config, strategy=replace(config.strategy, name="frozen"))
            if pretraining(self._identity(frozen, dataset)) == parts:  # else the strategy itself decides how it begins
                config, arguments = frozen, [*arguments, "--strategy.name=frozen"]
            config = replace(
                config,
                run_dir=folder,
                resume="auto",
                training=replace(config.training, spans=0, export="none"),
                eval=replace(config.eval, per_user=False),
                checkpoint=CheckpointConfig(enabled=True, every_steps=config.checkpoint.every_steps, keep_last=1),
            )
            arguments = [*arguments, "--training.spans=0"]
            name = f"{data}/{base}/pre-training/seed={config.seed}"
            self._pretrainings[folder] = self._made(name, config, arguments, parts, needs=None)
        return self._pretrainings[folder]

    def _identity(self, config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
        return identity(config) | _data(dataset)

    def _made(
        self, name: str, config: TrainConfig, arguments: list[str], identity: dict[str, Any], needs: Job | None
    ) -> Job:
        job = Job(
            name,
            config.run_dir,
            config,
            [*arguments, f"--seed={config.seed}", f"--run_dir={config.run_dir}"],
            identity | {"training.spans": config.training.spans},
            needs,
            keep=self.keep or needs is None,
        )
        self._all.append(job)
        return job


def _data(dataset: Dataset) -> dict[str, str]:
    return {"data": dataset.digest_until(dataset.spans - 1)}
