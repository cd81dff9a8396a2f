"""Takes users whom prepared data have forgotten out of the folders of runs."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from dist_imsr.data.dataset import Dataset
from dist_imsr.data.prepare import PrepareConfig
from dist_imsr.data.user_list import UserList, read_user_list
from dist_imsr.evaluation.exported import Origin
from dist_imsr.files import OtherFormat, sync_folder
from dist_imsr.training.checkpoint import DAMAGED, clear_away, newest_first
from dist_imsr.training.checkpoint_storage import discard, write_table
from dist_imsr.training.folder import lock_folder
from dist_imsr.training.storage import Stored, store_again


@contextlib.contextmanager
def forgetting_in_runs(config: PrepareConfig, console: Console) -> Iterator[None]:
    """Locks the runs of a change of prepared data, and takes the users out of them when the data have forgotten them.

    Args:
        config: of the change, which the block makes.
        console: for a line about each run.

    Raises:
        ValueError: naming the folder, before the block, if it holds no run, or one of other data or another version, or
            if another process writes to it.
    """
    users = config.forget_users
    if config.append is None or users is None or not config.run_dirs:
        yield
        return
    with contextlib.ExitStack() as locks:
        for folder in config.run_dirs:
            _check(folder, Dataset(config.prepared))
            locks.callback(os.close, lock_folder(folder, "run_dir"))
        yield
        dataset = Dataset(config.prepared)
        listed = read_user_list(users, dataset, "forget_users")
        for folder in config.run_dirs:
            files = forget_in_run(folder, dataset, listed)
            line = f"{folder}: {files} files with interests or metrics of forgotten users are written again"
            console.print(line, highlight=False, soft_wrap=True, markup=False)


def _check(folder: Path, dataset: Dataset) -> None:
    """Refuses a folder whose user ids are not those of the data."""
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"run_dir: {folder} holds no config.yaml: name the folder of a run")
    for _, stored in _checkpoints(folder):
        digests = [] if stored is None else stored.manifest["span_digests"]
        _require(digests == dataset.digests[: len(digests)], folder, dataset)
    for path in folder.glob("spans/span=*/*.arrow"):
        origin = Origin.of(path, _open(path).schema)
        _require(origin.data == dataset.digest_until(origin.span), folder, dataset)


def _require(same: bool, folder: Path, dataset: Dataset) -> None:
    if not same:
        raise ValueError(f"run_dir: {folder} was trained on other data than {dataset.path}: leave it out")


def forget_in_run(folder: Path, dataset: Dataset, listed: UserList) -> int:
    """Takes forgotten users out of checkpoints, exported spans and metrics; the bits of others stay as they are.

    Checkpoints that are damaged cannot be changed, and are removed.

    Args:
        folder: of the run, which is locked.
        dataset: the data; the interests of all whom they have forgotten go.
        listed: the users whose metrics go.

    Returns:
        The number of files that held anything of them.

    Raises:
        OSError: if the disk fails; it can be done again then.
    """
    for place in ("checkpoints", "spans"):
        clear_away(folder / place)
    for path in (folder / "checkpoints").glob(f"{DAMAGED}*"):
        shutil.rmtree(path)
    for path in (folder / "users").glob(".*"):  # of a test that was killed
        path.unlink()
    files, names = 0, set[str]()
    for path, stored in _checkpoints(folder):
        name = path.name.partition(".")[0]
        if stored is None or name in names:  # an earlier version may hold the users
            discard(path)
        else:
            names.add(name)
            files += _forget_in_checkpoint(stored, dataset.forgotten)
    for kind in ("interests", "detections"):
        files += sum(_forget_in_export(path, dataset.forgotten) for path in folder.glob(f"spans/span=*/{kind}-*.arrow"))
    return files + sum(_forget_metrics(path, listed) for path in folder.glob("users/*.parquet"))


def _checkpoints(folder: Path) -> Iterator[tuple[Path, Stored | None]]:
    """The checkpoints of a run, the newest first; None for a damaged one."""
    for path in newest_first(folder / "checkpoints"):
        try:
            yield path, Stored(path)
        except OtherFormat:
            raise
        except ValueError:
            yield path, None


def _forget_in_checkpoint(stored: Stored, forgotten: np.ndarray) -> int:
    tables = [path for path in stored.manifest["files"] if path.endswith(".arrow")]
    tables = [path for path in tables if np.isin(stored.table(path)["user"], forgotten).any()]
    if tables:
        store_again(stored, tables, lambda table: _without(table, forgotten))
    return len(tables)


def _forget_in_export(path: Path, forgotten: np.ndarray) -> int:
    table = _open(path)
    if not np.isin(table["user"], forgotten).any():
        return 0
    partial = path.with_name(f".{path.name}.partial")
    write_table(partial, _without(table, forgotten))
    _replace(partial, path)
    return 1


def _forget_metrics(path: Path, listed: UserList) -> int:
    users = listed.ids.drop_null()
    with pq.ParquetFile(path) as file:
        if not pc.any(pc.is_in(file.read(columns=["user"])["user"], users)).as_py():
            return 0
        partial = path.with_name(f".{path.name}.partial")
        with pq.ParquetWriter(partial, file.schema_arrow) as rest:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group)
                rest.write_table(rows.filter(pc.invert(pc.is_in(rows["user"], users))))
    sync_folder(partial)
    _replace(partial, path)
    return 1


def _open(path: Path) -> pa.RecordBatch:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except pa.ArrowException as error:
        raise ValueError(f"run_dir: {path} cannot be read ({error}): remove it") from error


def _without(table: pa.RecordBatch, users: np.ndarray) -> pa.RecordBatch:
    return table.filter(pa.array(~np.isin(table["user"], users)))


def _replace(partial: Path, path: Path) -> None:
    os.replace(partial, path)
    sync_folder(path.parent)
