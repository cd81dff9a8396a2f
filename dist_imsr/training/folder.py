"""A run's folder: checks it, locks it against other processes, and removes an earlier run."""

import fcntl
import json
import logging
import os
import shlex
import shutil
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from dist_imsr import logs
from dist_imsr.config import to_yaml
from dist_imsr.files import write_whole
from dist_imsr.machine import machine
from dist_imsr.training.checkpoint import clear_away, newest_first
from dist_imsr.training.config import TrainConfig

logger = logging.getLogger(__name__)
_LOCK = ".lock"
_FOLDERS = ("events", "spans", "users", "profile", "checkpoints")
_ENVIRONMENT = "environment.jsonl"
_RUN_FILES = ("config.yaml", "metrics.jsonl", "phases.jsonl", "baselines.jsonl", _ENVIRONMENT, *_FOLDERS)
_HEADER = "# What a run was made with, every key resolved; train.py writes it and --config reads it.\n"


def check_folder(config: TrainConfig, resumes: bool) -> None:
    """Refuses a folder in which a run cannot start or resume; changes nothing.

    Args:
        config: the whole tree.
        resumes: whether the run resumes from a checkpoint in the folder.

    Raises:
        ValueError: if it cannot be written, or holds results that a new run would overwrite.
    """
    folder = config.run_dir
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run_dir: {folder} is a file; name a folder")
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"run_dir: {folder} cannot be written; name another folder")
    for name in (*_FOLDERS, logs.FOLDER):
        if (folder / name).is_file():
            raise ValueError(f"run_dir: {folder / name} is a file where a run keeps a folder; name another run_dir")
    counts = config.strategy.full_retraining.interests_from
    if config.overwrite and counts is not None and counts.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"overwrite: it would remove {counts}, which strategy.full_retraining.interests_from names")
    if not resumes and not config.overwrite:
        lost = [path for path in _existing(folder) if config.resume == "never" or _has_results(path)]
        if lost:
            raise ValueError(
                f"run_dir: {folder} holds an earlier run ({lost[0].name}); name another folder, or pass --overwrite "
                "true"
            )


def refuse_locked(folder: Path) -> None:
    """Refuses a run's folder, which may be missing, if another process has locked it; changes nothing.

    Raises:
        ValueError: if it has.
    """
    try:
        lock = os.open(folder / _LOCK, os.O_RDONLY)
    except OSError:  # there is no lock, or no way to read it
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, as all ranks come here at once
    except BlockingIOError:
        raise ValueError(_locked("run_dir", folder)) from None
    except OSError:  # a file system without locks
        return
    finally:
        os.close(lock)


def claim_folder(config: TrainConfig, seen: list[Path]) -> int:
    """Creates and locks a run's folder, removes an earlier run and writes config.yaml.

    Args:
        config: the whole tree.
        seen: the checkpoints in it that the run may resume from.

    Returns:
        A descriptor; the folder is locked until it is closed.

    Raises:
        ValueError: if another process has locked the folder, or has changed it since ``seen`` was read.
        OSError: if it cannot be written.
    """
    folder, resumes = config.run_dir, bool(seen)
    lock = lock_folder(folder, "run_dir")
    try:
        check_folder(config, resumes)
        if not config.overwrite and newest_first(folder / "checkpoints") != seen:
            raise ValueError(f"run_dir: {folder} changed while this command began; start it again")
    except ValueError:
        os.close(lock)
        raise
    for name in ("checkpoints", "spans"):
        clear_away(folder / name)
    for path in [] if resumes else _existing(folder):
        _remove(path)
    if config.overwrite and (folder / logs.FOLDER).exists():  # else kept: they may explain a crash
        _remove(folder / logs.FOLDER)
    resuming = replace(config, overwrite=False, resume="auto")  # for a run with --config of this file
    write_whole(folder / "config.yaml", _HEADER + to_yaml(resuming))
    return lock


def record_environment(folder: Path, device: str, ranks: int) -> None:
    """Appends what this process runs with to environment.jsonl: a run that resumes elsewhere has several lines.

    Args:
        folder: of the run, which this process has claimed.
        device: ``cpu`` or ``cuda``.
        ranks: their number.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    line = {"started": started, "command": shlex.join(sys.argv), "ranks": ranks, **machine(device)}
    with (folder / _ENVIRONMENT).open("a") as file:
        file.write(json.dumps(line) + "\n")


def lock_folder(folder: Path, key: str) -> int:
    """Creates a folder and locks it against other processes.

    Args:
        folder: the folder.
        key: the configuration key that names it, for errors.

    Returns:
        A descriptor; the folder is locked until it is closed.

    Raises:
        ValueError: if another process has locked the folder.
        OSError: if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ValueError(_locked(key, folder)) from None
    except OSError as error:
        logger.warning("%s has no locks (%s): make sure that one job at a time writes to it", folder, error.strerror)
    return lock


def _locked(key: str, folder: Path) -> str:
    return f"{key}: another process is writing to {folder}; wait for it, or name another"


def _existing(folder: Path) -> list[Path]:
    return [folder / name for name in _RUN_FILES if (folder / name).exists()]


def _has_results(path: Path) -> bool:
    """Whether a file or folder contains more than what every run writes when it starts."""
    if path.name == "config.yaml":
        return not path.read_text().startswith(_HEADER)
    if path.name in ("phases.jsonl", "baselines.jsonl", _ENVIRONMENT, "profile"):  # of no use without the other results
        return False
    if path.name == "metrics.jsonl":
        return path.stat().st_size > 0
    prefix = "events.out.tfevents" if path.name == "events" else "."
    return any(not inner.name.startswith(prefix) for inner in path.iterdir())


def _remove(path: Path) -> None:
    if path.is_symlink() and path.is_dir():  # the folder that it points to stays, empty
        for inner in path.iterdir():
            _remove(inner)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
