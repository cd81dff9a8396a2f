"""The right to be forgotten: a user leaves data and runs, and nobody else's bits or recommendations change."""

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dist_imsr.data.batch import BatchConfig
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.data.prepare import PrepareConfig, prepare
from dist_imsr.data.user_list import read_user_list
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.evaluation.finished import FinishedRun
from dist_imsr.evaluation.index import ExportConfig, export
from dist_imsr.evaluation.recommend import RecommendConfig, recommend, requested_users
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.training.checkpoint import CheckpointConfig, newest_first
from dist_imsr.training.config import TrainConfig, TrainingConfig
from dist_imsr.training.folder import lock_folder
from dist_imsr.training.forget import forget_in_run, forgetting_in_runs
from dist_imsr.training.storage import Stored
from tests.kills import contents, killed_at
from tests.ranks import run_ranks
from tests.runs import run
from tests.training.test_checkpoint import GROWING

DAY = 86_400
NAMES = ["user-7", "user-21"]


class Trained(NamedTuple):
    """A folder with prepared data, ``data``, of which all but the last day are trained in ``run``, and its key."""

    folder: Path
    config: TrainConfig


def rows(days: range) -> Iterator[str]:
    draw = np.random.default_rng(days.start)
    for day, user in itertools.product(days, range(24)):
        taste = np.random.default_rng(user).integers(40, size=3)
        for second in np.sort(draw.integers(DAY, size=draw.integers(3, 9))):
            yield f"user-{user},sku-{(draw.choice(taste) + draw.integers(4)) % 40},{day * DAY + second}\n"


def write_log(path: Path, days: range) -> Path:
    path.write_text("user,item,time\n" + "".join(rows(days)))
    return path


def quietly(config: PrepareConfig) -> None:
    with forgetting_in_runs(config, Console(quiet=True)):
        prepare(config, Console(quiet=True))


def forget(folder: Path) -> None:
    (folder / "names.txt").write_text("\n".join(NAMES))
    keys = {"forget_users": folder / "names.txt", "run_dir": folder / "run"}
    quietly(PrepareConfig(append=folder / "data", threads=1, **keys))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    options = {"min_interactions": 1, "buckets": 3, "span_every": "1d", "pretrain_until": DAY, "threads": 1}
    log = write_log(folder / "log.csv", range(4))
    quietly(PrepareConfig(source="csv", input=log, output=folder / "data", **options))
    config = TrainConfig(
        data=DataConfig(folder / "data"),
        run_dir=folder / "run",
        model=ModelConfig("comirec_sa", dim=8, interests=3),
        # New interests that start at the same item are equal: they would be found in others' files.
        strategy=replace(GROWING, imsr=replace(GROWING.imsr, detector=replace(GROWING.imsr.detector, start="noise"))),
        batch=BatchConfig(size=8, max_history=10, max_targets=3, negatives=20, eval_size=16),
        training=TrainingConfig(epochs=2, incremental_epochs=2, patience=1, export="every"),
        eval=EvalConfig([5], per_user=True),
        checkpoint=CheckpointConfig(every_steps=2, keep_last=1000),
    )
    run_ranks(2, run, config)
    return Trained(folder, config)


@pytest.fixture
def place(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the data and a run with three of its checkpoints, one of which is in an epoch after the first."""
    for name in ("data", "run"):
        shutil.copytree(trained.folder / name, tmp_path / name)
    found = newest_first(tmp_path / "run" / "checkpoints")
    later = next(path for path in found if (path / "best_interests").exists() and (path / "detections").exists())
    kept = list(dict.fromkeys([*found[:2], later, found[2]]))[:3]
    for path in set(found) - set(kept):
        shutil.rmtree(path)
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace(str(trained.folder / "data"), str(tmp_path / "data")))
    return tmp_path


def publish(topology: Any, folder: Path, output: Path) -> None:
    finished = FinishedRun(folder / "run")
    span = finished.resolve_span(None)
    output.mkdir(exist_ok=True)
    config = RecommendConfig(folder / "run", output / "recommendations.parquet", top=5)
    recommend(config, finished, span, requested_users(config, finished.dataset), topology)
    export(ExportConfig(folder / "run", output / "export"), finished, span, topology)


def without(path: Path) -> pa.Table:
    """The rows of all but those who are forgotten."""
    table = pq.ParquetFile(path).read()
    return table.filter(pa.array([user not in NAMES for user in table["user"].to_pylist()]))


def values_of(folder: Path) -> Iterator[Any]:
    """Every value of every table in a folder."""
    for path in [*folder.rglob("*.arrow"), *folder.rglob("*.parquet")]:
        table = pa.ipc.open_file(path).read_all() if path.suffix == ".arrow" else pq.ParquetFile(path).read()
        for column in table.columns:
            yield from column.to_pylist()


def vectors_of(folder: Path, users: set[int]) -> set[bytes]:
    """The interests of users in a run."""
    found = set()
    for path in folder.rglob("*.arrow"):
        table = pa.ipc.open_file(path).read_all()
        if {"user", "vector"} <= {*table.schema.names}:
            pairs = zip(table["user"].to_pylist(), table["vector"].to_pylist(), strict=True)
            found |= {np.float32(vector).tobytes() for user, vector in pairs if user in users}
    return found


def test_no_trace_is_left_and_others_get_the_same(trained: Trained, place: Path, tmp_path: Path) -> None:
    before = Dataset(DataConfig(place / "data"))
    ids = set(before.user_ids(pa.array(NAMES)).tolist())
    theirs = vectors_of(place / "run", ids)
    others = vectors_of(place / "run", set(range(before.users * 3)) - ids)
    assert len(theirs) > 2 * len(NAMES)
    run_ranks(1, publish, place, place / "before")
    old = newest_first(place / "run" / "checkpoints")
    assert any(user in NAMES for user in values_of(place / "run" / "users"))

    forget(place)
    run_ranks(1, publish, place, tmp_path / "after")

    for folder in (place / "data", place / "run", tmp_path / "after"):
        assert set(NAMES).isdisjoint(value for value in values_of(folder) if isinstance(value, str))
        for path in (path for path in folder.rglob("*") if path.is_file()):
            content = path.read_bytes()
            assert not any(name.encode() in content for name in NAMES)
            assert not any(vector in content for vector in theirs)
    assert vectors_of(place / "run", ids) == set()
    assert vectors_of(place / "run", set(range(before.users * 3))) == others
    new = newest_first(place / "run" / "checkpoints")
    assert [path.name for path in new] == [f"{path.name}.1" for path in old]
    for name in ("recommendations.parquet", "export/interests.parquet", "export/items.parquet"):
        after = pq.ParquetFile(tmp_path / "after" / name).read()
        expected = (
            pq.ParquetFile(place / "before" / name).read() if "items" in name else without(place / "before" / name)
        )
        assert after.equals(expected)
    forget(place)
    assert newest_first(place / "run" / "checkpoints") == new


def test_checkpoints_stay_sound_and_the_run_goes_on(trained: Trained, place: Path, tmp_path: Path) -> None:
    """A run that forgot is the run that did not, but for the users who are gone."""
    before = {path.name: Stored(path) for path in newest_first(place / "run" / "checkpoints")}
    forget(place)
    dataset = Dataset(DataConfig(place / "data"))
    assert len(dataset.forgotten) == len(NAMES)
    changed = set()
    for path in newest_first(place / "run" / "checkpoints"):
        stored = Stored(path)
        stored.verify()
        old = json.loads((trained.folder / "run" / "checkpoints" / path.stem / "manifest.json").read_text())
        assert {key: value for key, value in stored.manifest.items() if key != "files"} == {
            key: value for key, value in old.items() if key != "files"
        }
        for name in old["files"]:
            same = (path / name).read_bytes() == (
                trained.folder / "run" / "checkpoints" / path.stem / name
            ).read_bytes()
            changed |= set() if same else {name.split("/")[0]}
        assert path.stem in before
    assert changed == {"interests", "best_interests", "detections"}
    quietly(PrepareConfig(append=place / "data", input=write_log(tmp_path / "next.csv", range(4, 5)), threads=1))
    lines, _ = run_ranks(
        3,
        run,
        trained.config.__class__(
            **vars(trained.config) | {"data": DataConfig(place / "data"), "run_dir": place / "run"}
        ),
    )[0]
    assert [line["span"] for line in lines] == [1, 2, 3]
    grown = Dataset(DataConfig(place / "data"))
    assert vectors_of(place / "run" / "spans" / "span=3", set(grown.forgotten.tolist())) == set()
    assert vectors_of(place / "run" / "spans" / "span=3", set(grown.user_ids(pa.array(NAMES)).tolist())) == set()


def test_runs_that_are_not_named_still_do_not_recommend(place: Path) -> None:
    (place / "names.txt").write_text("\n".join(NAMES))
    quietly(PrepareConfig(append=place / "data", forget_users=place / "names.txt", threads=1))
    run_ranks(1, publish, place, place / "after")
    users = pq.ParquetFile(place / "after" / "recommendations.parquet").read()["user"].to_pylist()
    assert set(users) == {f"user-{user}" for user in range(24)} - set(NAMES)


def test_a_run_that_trains_is_refused(place: Path) -> None:
    before = contents(place)
    lock = lock_folder(place / "run", "run_dir")
    with pytest.raises(ValueError, match="run_dir: another process is writing"):
        forget(place)
    os.close(lock)
    (place / "names.txt").unlink()
    assert contents(place) == before


def test_folders_of_other_data_are_refused(place: Path, tmp_path: Path) -> None:
    options = {"min_interactions": 1, "buckets": 3, "spans": 3, "threads": 1}
    log = write_log(tmp_path / "other.csv", range(2, 6))
    quietly(PrepareConfig(source="csv", input=log, output=tmp_path / "other", **options))
    (place / "names.txt").write_text("\n".join(NAMES))
    before = contents(place)
    config = PrepareConfig(append=tmp_path / "other", forget_users=place / "names.txt", run_dir=place / "run")
    with pytest.raises(ValueError, match="was trained on other data"):
        quietly(config)
    shutil.rmtree(place / "run" / "checkpoints")
    with pytest.raises(ValueError, match="was trained on other data"):
        quietly(config)
    (place / "run" / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"holds no config\.yaml"):
        quietly(config)
    assert contents(place).items() <= before.items()


def test_damaged_checkpoints_go(place: Path) -> None:
    newest, second, _ = newest_first(place / "run" / "checkpoints")
    (newest / "manifest.json").write_text("{}")
    second.rename(second.with_name(f"damaged-{second.name}"))
    forget(place)
    [left] = (place / "run" / "checkpoints").iterdir()
    assert left.name.endswith(".1")
    Stored(left).verify()


def forget_in(folder: Path) -> None:
    dataset = Dataset(DataConfig(folder.parent / "data"))
    forget_in_run(folder, dataset, read_user_list(folder.parent / "names.txt", dataset))


def test_killed_anywhere_the_same_command_ends_it(place: Path, tmp_path: Path) -> None:
    (place / "names.txt").write_text("\n".join(NAMES))
    quietly(PrepareConfig(append=place / "data", forget_users=place / "names.txt", threads=1))
    *others, earlier = newest_first(place / "run" / "checkpoints")
    for path in others:
        shutil.rmtree(path)
    shutil.rmtree(place / "run" / "spans" / "span=0")
    before = contents(place / "run")
    done = shutil.copytree(place / "run", place / "done")
    forget_in(done)
    for point in itertools.count():
        # No file is written in place, so links do for copies.
        folder = shutil.copytree(place / "run", place / "killed", copy_function=os.link)
        if not killed_at(point, folder, forget_in, folder):
            break
        newest = newest_first(folder / "checkpoints")[0]
        Stored(newest).verify()
        assert newest.name in (earlier.name, f"{earlier.name}.1")
        forget_in(folder)
        assert contents(folder) == contents(done)
        shutil.rmtree(folder)
    assert point > 20
    assert contents(place / "run") == before
