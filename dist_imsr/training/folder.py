"""A run's folder: what it holds already, and the one process that may write to it."""

import fcntl
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

from dist_imsr import logs
from dist_imsr.config import to_yaml
from dist_imsr.files import write_whole
from dist_imsr.training.checkpoint import clear_away, newest_first
from dist_imsr.training.config import TrainConfig

logger = logging.getLogger(__name__)
_FOLDERS = ("events", "spans", "users", "profile", "checkpoints")
_OURS = ("config.yaml", "metrics.jsonl", "phases.jsonl", *_FOLDERS)
_HEADER = "# What a run was made with, every key resolved; train.py writes it and --config reads it.\n"


def check_folder(config: TrainConfig, resumes: bool) -> None:
    """Refuses a folder in which a run cannot begin or go on; changes nothing.

    Args:
        config: the whole tree.
        resumes: whether a checkpoint in the folder is to be gone on from.

    Raises:
        ValueError: if it cannot be written, or holds what a new run would write over.
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
        lost = [path for path in _held(folder) if config.resume == "never" or _worth(path)]
        if lost:
            raise ValueError(
                f"run_dir: {folder} holds an earlier run ({lost[0].name}); name another folder, or pass --overwrite "
                "true"
            )


def claim_folder(config: TrainConfig, seen: list[Path]) -> int:
    """Makes a run's folder and holds it against other processes.

    Args:
        config: the whole tree.
        seen: the checkpoints in it that are to be gone on from.

    Returns:
        A descriptor; the folder is held until it is closed.

    Raises:
        ValueError: if another process holds the folder, or did until now.
        OSError: if it cannot be written.
    """
    folder, resumes = config.run_dir, bool(seen)
    claim = lock_folder(folder, "run_dir")
    try:
        check_folder(config, resumes)
        if not config.overwrite and newest_first(folder / "checkpoints") != seen:
            raise ValueError(f"run_dir: {folder} changed while this command began; start it again")
    except ValueError:
        os.close(claim)
        raise
    clear_away(folder / "checkpoints")
    for path in [] if resumes else _held(folder):
        _remove(path)
    if config.overwrite and (folder / logs.FOLDER).exists():  # else they tell why an earlier process left so little
        _remove(folder / logs.FOLDER)
    settled = replace(config, overwrite=False, resume="auto")  # whoever reads it back goes on
    write_whole(folder / "config.yaml", _HEADER + to_yaml(settled))
    return claim


def lock_folder(folder: Path, key: str) -> int:
    """Makes a folder and holds it against other processes.

    Args:
        folder: to be written to.
        key: that names it.

    Returns:
        A descriptor; the folder is held until it is closed.

    Raises:
        ValueError: if another process holds the folder.
        OSError: if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(claim)
        raise ValueError(f"{key}: another process is writing to {folder}; wait for it, or name another") from None
    except OSError as error:
        logger.warning("%s knows no locks (%s): see to it that one job at a time writes to it", folder, error.strerror)
    return claim


def _held(folder: Path) -> list[Path]:
    return [folder / name for name in _OURS if (folder / name).exists()]


def _worth(path: Path) -> bool:
    """Whether something holds more than a new run writes at its beginning."""
    if path.name == "config.yaml":
        return not path.read_text().startswith(_HEADER)
    if path.name in ("phases.jsonl", "profile"):  # tells of what is lost already, where there is nothing else
        return False
    if path.name == "metrics.jsonl":
        return path.stat().st_size > 0
    beginning = "events.out.tfevents" if path.name == "events" else "."
    return any(not one.name.startswith(beginning) for one in path.iterdir())


def _remove(path: Path) -> None:
    if path.is_symlink() and path.is_dir():  # a folder that stands elsewhere stays where it is
        for one in path.iterdir():
            _remove(one)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
