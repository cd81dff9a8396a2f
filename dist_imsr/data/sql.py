"""Texts, paths and names as DuckDB's SQL writes them."""

import glob
from collections.abc import Iterable
from pathlib import Path


def quoted(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("'", "''") + "'"


def quoted_path(path: Path) -> str:
    """A string literal for DuckDB's readers, which would otherwise expand ``*`` and ``[``."""
    return quoted(glob.escape(str(path)))


def quoted_paths(paths: Iterable[Path]) -> str:
    """A list of paths as DuckDB's functions that read files take it; as in `quoted_path`."""
    return f"[{', '.join(map(quoted_path, paths))}]"
