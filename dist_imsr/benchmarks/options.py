"""Options that benchmarks share, and the checks of their values."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from dist_imsr import devices
from dist_imsr.checks import require, require_file, require_folder
from dist_imsr.config import plain

Device = Literal["auto", "cpu", "cuda"]
MAY_BE_ZERO = {"at_least": 0}
"""Metadata of a whole number that may be 0; all others are at least 1."""

_RANKS_ON_HOST = 2
_PROJECT = Path(__file__).resolve().parents[2]
_OUTPUTS = ("json", "folder")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every benchmark; a benchmark's dataclass adds its own.

    Args:
        json: a file for the figures, as a list of objects.
    """

    json: Path | None = None

    def __post_init__(self) -> None:
        for option in fields(self):
            value, least = getattr(self, option.name), option.metadata.get("at_least", 1)
            if type(value) is int:
                require(value >= least, option.name, value, f"at least {least}")
        require_file(self.json, "json")

    @property
    def settings(self) -> dict[str, Any]:
        """The values by key, as a figure reports them: no output paths, and this project's files by relative paths."""
        return {name: _reported(value) for name, value in asdict(self).items() if name not in _OUTPUTS}


@dataclass(frozen=True, kw_only=True)
class WorldOptions(Options):
    """Options of a benchmark that starts ranks.

    Args:
        device: the ranks' device; auto is CUDA where there is a device.
        ranks: number of processes; 0 for two on the host, or one per CUDA device.
        threads: torch threads of each process.
    """

    device: Device = "auto"
    ranks: int = 0
    threads: int = 1

    def __post_init__(self) -> None:
        found = devices.device_count()
        device = self.device if self.device != "auto" else "cuda" if found else "cpu"
        require(device == "cpu" or found > 0, "device", device, "cpu: this machine shows no CUDA device")
        require(self.ranks >= 0, "ranks", self.ranks, "at least 1, or 0")
        ranks = self.ranks or (found if device == "cuda" else _RANKS_ON_HOST)
        require(device == "cpu" or ranks <= found, "ranks", ranks, f"at most one per CUDA device, of {found}")
        object.__setattr__(self, "device", device)  # the dataclass is frozen
        object.__setattr__(self, "ranks", ranks)
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class FolderOptions(Options):
    """Options of a benchmark that writes large files.

    Args:
        folder: parent of a scratch folder, which is removed at the end; the current directory by default.
    """

    folder: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_folder(self.folder or Path(), "folder")

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new folder inside ``folder``, removed with its files at the end."""
        with TemporaryDirectory(prefix="bench-", dir=(self.folder or Path()).resolve()) as folder:
            yield Path(folder)


def _reported(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reported(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_reported(inner) for inner in value]
    inside = isinstance(value, Path) and value.is_relative_to(_PROJECT)
    return plain(value.relative_to(_PROJECT) if inside else value)
