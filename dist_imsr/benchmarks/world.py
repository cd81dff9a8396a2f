"""What benchmarks on ranks share: which devices, how many ranks, and what is told of both."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from dist_imsr import devices
from dist_imsr.benchmarks.ranks import LocalRanks
from dist_imsr.checks import require
from dist_imsr.config import plain

Device = Literal["auto", "cpu", "cuda"]
_ON_HOST = 2  # ranks, where nobody says how many
_PROJECT = Path(__file__).resolve().parents[2]
_WHERE = ("json", "folder")  # keys that tell where something is written, and nothing of what is measured


def settle(options: Any) -> None:
    """Puts a device and a number of ranks where options leave them open, and refuses those that there are not.

    Args:
        options: a dataclass with ``device``, ``auto`` for CUDA where there is a device of it, and ``ranks``, 0 for two
            on the host and for one on each device of CUDA.

    Raises:
        ValueError: naming the key.
    """
    found = devices.device_count()
    device = options.device if options.device != "auto" else "cuda" if found else "cpu"
    require(device == "cpu" or found > 0, "device", device, "cpu: this machine shows no CUDA device")
    require(options.ranks >= 0, "ranks", options.ranks, "at least 1, or 0")
    ranks = options.ranks or (found if device == "cuda" else _ON_HOST)
    require(device == "cpu" or ranks <= found, "ranks", ranks, f"one for each CUDA device at most, of {found}")
    object.__setattr__(options, "device", device)  # as a frozen dataclass must; who replaces a key settles it again
    object.__setattr__(options, "ranks", ranks)


def check_counts(options: Any, *or_zero: str) -> None:
    """Refuses whole numbers below 1.

    Args:
        options: a dataclass whose whole numbers count something.
        or_zero: keys that may be 0, beside ``seed``.

    Raises:
        ValueError: naming the key.
    """
    for field in fields(options):
        value = getattr(options, field.name)
        if isinstance(value, int):
            require(value >= (0 if field.name in ("seed", *or_zero) else 1), field.name, value, "at least 1")


def world(options: Any, seconds: float = 600.0) -> LocalRanks:
    """The ranks that options ask for.

    Args:
        options: a dataclass that was settled, with ``threads``.
        seconds: how long one call may take.

    Returns:
        A context manager that ends them.
    """
    return LocalRanks(options.ranks, options.threads, seconds, options.device)


def settings_of(options: Any) -> dict[str, Any]:
    """What a figure tells of the options that it was measured with.

    Args:
        options: a dataclass.

    Returns:
        Its values by key; files of this project by their places in it.
    """
    return {name: _told(value) for name, value in asdict(options).items() if name not in _WHERE}


def _told(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _told(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_told(inner) for inner in value]
    within = isinstance(value, Path) and value.is_relative_to(_PROJECT)
    return plain(value.relative_to(_PROJECT) if within else value)
